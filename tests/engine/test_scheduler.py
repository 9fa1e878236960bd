"""The scheduler over an engine without a model: no block is lost, nobody starves, nothing is left behind."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ling.engine.blocks import BlockPool
from ling.engine.request import SamplingParams
from ling.engine.scheduler import Scheduler
from ling.engine.sequence import Sequence
from ling.engine.text import AnswerText
from ling.testing.text import IdTokenizer

SIZE = 4


def sequence(name: str, prompt: list[int], answer: int, after: Sequence | None = None) -> Sequence:
    params = SamplingParams(max_tokens=answer)
    text = AnswerText(IdTokenizer(1000), params)
    return Sequence(
        request_id=name,
        index=0,
        params=params,
        tokens=list(prompt),
        num_prompt=len(prompt),
        max_new=answer,
        seed=0,
        text=text,
        after=after,
    )


def advance(scheduler: Scheduler, rows: dict[Sequence, int], draft: int = 0) -> list[Sequence]:
    """Do what the engine does with a plan, accepting every second draft; return who finished."""
    finished = []
    for s, count in rows.items():
        drafts, s.drafts = s.drafts, []
        kept = count - len(drafts) + len(drafts) // 2
        begin = s.num_computed
        s.num_computed += kept
        assert s.num_computed <= SIZE * len(s.blocks), (s.num_computed, s.blocks)
        if begin + count < len(s.tokens):
            scheduler.publish(s)
            continue
        s.tokens += [7] * min(1 + len(drafts) // 2, s.max_new - s.num_generated)
        if s.num_generated >= s.max_new:
            s.finished = True
            scheduler.remove(s)
            finished.append(s)
            continue
        scheduler.publish(s)
        s.drafts = [7] * min(draft, s.max_new - s.num_generated - 1)
    return finished


def check(scheduler: Scheduler, everybody: list[Sequence]) -> None:
    scheduler.pool.check([s.blocks for s in everybody])
    assert all(not s.blocks for s in scheduler.waiting)


def test_decoding_goes_first_and_prompts_share_what_is_left() -> None:
    scheduler = Scheduler(BlockPool(100, SIZE), budget=10, most=8)
    old, new = sequence("old", [1] * 3, 5), sequence("new", [2] * 30, 5)
    scheduler.add(old)
    advance(scheduler, scheduler.schedule())
    scheduler.add(new)
    assert scheduler.schedule() == {old: 1, new: 9}


def test_the_youngest_gives_way_and_goes_on_later_with_the_same_tokens() -> None:
    scheduler = Scheduler(BlockPool(6, SIZE), budget=64, most=8)
    old, young = sequence("old", [1] * 11, 12), sequence("young", [2] * 9, 8)
    everybody = [old, young]
    for s in everybody:
        scheduler.add(s)
    order = []
    for _ in range(40):
        order += advance(scheduler, scheduler.schedule())
        check(scheduler, everybody)
    assert order == everybody
    assert scheduler.num_preempted == 1
    assert [len(s.tokens) for s in everybody] == [23, 17]


def test_answers_to_one_prompt_wait_for_its_first_and_share_its_blocks() -> None:
    scheduler = Scheduler(BlockPool(40, SIZE), budget=64, most=8)
    first = sequence("a", list(range(10)), 4)
    others = [sequence("a", list(range(10)), 4, after=first) for _ in range(3)]
    stranger = sequence("b", [9] * 5, 4)
    for s in (first, *others, stranger):
        scheduler.add(s)
    assert set(scheduler.schedule()) == {first, stranger}  # the stranger behind them is not held up
    advance(scheduler, {first: 10, stranger: 5})
    rows = scheduler.schedule()
    assert [rows[s] for s in others] == [2, 2, 2]  # two whole blocks are found
    assert all(s.blocks[:2] == first.blocks[:2] for s in others)


def test_a_waiting_request_that_needs_more_than_is_free_holds_back_those_behind_it() -> None:
    scheduler = Scheduler(BlockPool(10, SIZE), budget=64, most=8)
    running, large, small = sequence("r", [1] * 20, 9), sequence("l", [2] * 30, 2), sequence("s", [3] * 2, 2)
    scheduler.add(running)
    advance(scheduler, scheduler.schedule())
    scheduler.add(large)
    scheduler.add(small)
    assert set(scheduler.schedule()) == {running}
    assert list(scheduler.waiting) == [large, small]


REQUEST = st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(1, 20))


@settings(max_examples=120, deadline=None)
@given(
    st.lists(REQUEST, min_size=1, max_size=25),
    st.integers(4, 40),
    st.integers(1, 6),
    st.integers(0, 3),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_everybody_is_served_and_every_block_comes_back(
    requests: list, budget: int, most: int, draft: int, caching: bool, random: object
) -> None:
    budget = max(budget, most * (1 + draft))
    pool = BlockPool(17, SIZE, caching=caching)  # one request of 60 tokens and its drafts just fits
    scheduler = Scheduler(pool, budget=budget, most=most, lookahead=draft)
    everybody: list[Sequence] = []
    waiting = [sequence(str(i), [kind] * prompt, answer) for i, (kind, prompt, answer) in enumerate(requests)]
    cancelled: list[Sequence] = []
    order = []
    for _ in range(3000):
        while waiting and random.random() < 0.5:  # type: ignore[attr-defined]
            everybody.append(waiting.pop(0))
            scheduler.add(everybody[-1])
        rows = scheduler.schedule()
        assert sum(rows.values()) <= budget
        assert len(scheduler.running) <= most
        order += advance(scheduler, rows, draft)
        check(scheduler, everybody)
        if scheduler.running and random.random() < 0.05:  # type: ignore[attr-defined]
            gone = random.choice([*scheduler.running, *scheduler.waiting])  # type: ignore[attr-defined]
            gone.finished = True
            scheduler.remove(gone)
            cancelled.append(gone)
            check(scheduler, everybody)
        if not (waiting or scheduler.waiting or scheduler.running):
            break
    assert len(order) + len(cancelled) == len(requests), "somebody starved"
    assert pool.num_free == pool.num_blocks
    for s in order:
        assert s.num_generated == s.max_new


def test_drafting_does_not_go_on_behind_a_block_whose_last_hidden_state_was_not_kept() -> None:
    scheduler = Scheduler(BlockPool(8, SIZE), budget=64, most=4)
    s = sequence("a", list(range(2 * SIZE + 1)), 3)
    scheduler.add(s)
    scheduler.schedule()
    s.num_computed = s.mtp_next = 2 * SIZE  # the last slot was filled, then the last token computed while nobody drafts
    scheduler.publish(s)
    assert scheduler.pool.drafting_is_filled(s.blocks[:1])
    assert not scheduler.pool.drafting_is_filled(s.blocks[:2])
