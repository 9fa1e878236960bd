"""The engine on its thread: aborts, limits, draining, and faults that harm only those they strike."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import pytest
import torch

from ling.config.engine import EngineConfig
from ling.engine import choosing, core
from ling.engine.build import build
from ling.engine.cache import Part
from ling.engine.core import Engine
from ling.engine.loop import EngineLoop
from ling.engine.request import Delta, SamplingParams, StructuredOutputsParams
from ling.engine.runner import Runner
from ling.engine.stats import RequestStats
from ling.errors import QueueFullError, RequestError
from ling.testing.models import tiny_model
from ling.testing.text import IdTokenizer

MODEL = tiny_model(seed=1)


class Answers:
    """Collects deltas by request and waits for ends."""

    def __init__(self) -> None:
        self.deltas: dict[str, list[Delta]] = defaultdict(list)
        self._changed = threading.Condition()

    def __call__(self, delta: Delta) -> None:
        with self._changed:
            self.deltas[delta.request_id].append(delta)
            self._changed.notify_all()

    def tokens(self, name: str) -> list[int]:
        return [t for d in self.deltas[name] for t in d.token_ids]

    def reason(self, name: str) -> str | None:
        return self.deltas[name][-1].finish_reason if self.deltas[name] else None

    def wait(self, *names: str, first: bool = False) -> None:
        def done(name: str) -> bool:
            return bool(self.deltas[name]) if first else self.reason(name) is not None

        with self._changed:
            assert self._changed.wait_for(lambda: all(map(done, names)), timeout=30), dict(self.deltas)


def engine(**options) -> Engine:
    return build(MODEL, IdTokenizer(128), EngineConfig(block_size=4, **options))


@pytest.fixture
def loop(request: pytest.FixtureRequest) -> Iterator[EngineLoop]:
    loop = EngineLoop(engine(**getattr(request, "param", {}))).start()
    yield loop
    loop.stop()
    assert not loop.engine.has_work
    loop.engine.blocks.check([])


def params(count: int = 8, **options) -> SamplingParams:
    return SamplingParams(**{"max_tokens": count, "ignore_eos": True, "temperature": 0, **options})


def test_requests_from_many_threads_get_what_they_get_alone(loop: EngineLoop) -> None:
    answers = Answers()
    names = [str(i) for i in range(12)]
    threads = [threading.Thread(target=loop.submit, args=(n, [5 + int(n), 6, 7], params(), answers)) for n in names]
    for thread in threads:
        thread.start()
    answers.wait(*names)
    alone = Answers()
    for n in names:
        loop.submit(f"again {n}", [5 + int(n), 6, 7], params(), alone)
        alone.wait(f"again {n}")
    assert [answers.tokens(n) for n in names] == [alone.tokens(f"again {n}") for n in names]
    assert loop.num_unfinished == 0


def test_a_request_knows_when_it_began_and_what_was_drafted_for_it() -> None:
    one = engine(max_num_seqs=1, drafting="mtp", num_speculative_tokens=2, adaptive_drafts=False)
    plain = EngineLoop(one).start()
    answers, begin = Answers(), time.monotonic()
    first = plain.submit("first", [5, 6, 5, 6, 5, 6], params(40), answers)
    second = plain.submit("second", [7, 8, 7, 8, 7, 8], params(40), answers)
    answers.wait("first", "second")
    plain.stop()
    assert first.begun is not None
    assert second.begun is not None
    assert begin <= first.submitted <= first.begun <= time.monotonic()
    assert first.begun < second.begun  # which waited for it
    stats = plain.engine.stats
    assert stats.drafted == first.drafted + second.drafted > 20
    assert stats.draft_rounds >= stats.drafted / 2
    assert stats.accepted >= first.accepted + second.accepted
    assert not plain._stats


def test_drafts_behind_the_end_of_an_answer_are_not_accepted() -> None:
    stats = RequestStats(0.0)
    for drafts, tokens in (((5, 6), [5, 6, 7]), ((5, 6), [5, 9]), ((5, 6), [5]), ((), [4]), ((5,), [8])):
        stats.count_drafts(drafts, tokens)
    assert (stats.drafted, stats.accepted) == (7, 4)


@pytest.mark.parametrize("loop", [{"max_num_seqs": 1}], indirect=True)
def test_an_abort_ends_a_running_and_a_waiting_request(loop: EngineLoop) -> None:
    answers = Answers()
    loop.submit("running", [5, 6, 7], params(240), answers)
    loop.submit("waiting", [5, 6, 8], params(240), answers)
    loop.submit("patient", [5, 6, 9], params(3), answers)
    answers.wait("running", first=True)
    loop.abort("waiting")
    loop.abort("running")
    loop.abort("nobody")
    answers.wait("running", "waiting", "patient")
    assert [answers.reason(n) for n in ("running", "waiting", "patient")] == ["abort", "abort", "length"]
    assert answers.tokens("waiting") == []


@pytest.mark.parametrize("loop", [{"max_num_seqs": 1, "max_num_queued": 2}], indirect=True)
def test_a_full_queue_refuses_and_a_wrong_request_says_why(loop: EngineLoop) -> None:
    answers = Answers()
    loop.submit("first", [5], params(200), answers)
    answers.wait("first", first=True)
    loop.submit("second", [6], params(2), answers)
    with pytest.raises(RequestError, match="request id second is in use"):
        loop.submit("second", [6], params(2), answers)
    loop.submit("third", [7], params(2), answers)
    with pytest.raises(QueueFullError, match="2 requests wait already"):
        loop.submit("fourth", [8], params(2), answers)
    with pytest.raises(RequestError, match="token id 500"):
        loop.submit("fifth", [500], params(2), answers)
    loop.abort("first")
    answers.wait("second", "third")


def test_draining_finishes_what_runs_and_takes_nothing_new() -> None:
    loop, answers = EngineLoop(engine()).start(), Answers()
    loop.submit("quick", [5], params(5), answers)
    loop.submit("endless", [5], params(250), answers)
    answers.wait("endless", first=True)
    loop.stop(drain_seconds=0.01)
    with pytest.raises(QueueFullError):
        loop.submit("late", [5], params(2), answers)
    assert {answers.reason("quick"), answers.reason("endless")} <= {"length", "abort"}
    assert not loop.alive


def test_a_listener_that_fails_loses_its_own_request_only(loop: EngineLoop) -> None:
    def gone(delta: Delta) -> None:
        raise ConnectionError("nobody listens")

    answers = Answers()
    loop.submit("gone", [5], params(200), gone)
    loop.submit("here", [6], params(6), answers)
    answers.wait("here")
    assert answers.reason("here") == "length"
    deadline = time.monotonic() + 10
    while loop.num_unfinished and time.monotonic() < deadline:
        time.sleep(0.01)
    assert loop.num_unfinished == 0


# ---- faults: at each stage something breaks for request "bad"; "good" runs beside it and another one after it ----


def is_bad(s: object) -> bool:
    return getattr(s, "request_id", "") == "bad"


def break_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    real = choosing.choice_row

    def rows(s: object, *args: object) -> object:
        if is_bad(s):
            raise ValueError("sampler")
        return real(s, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(choosing, "choice_row", rows)


def break_text(monkeypatch: pytest.MonkeyPatch) -> None:
    real = choosing._extend_text

    def extend(s: object, *args: object) -> None:
        if is_bad(s):
            raise UnicodeError("detokenizer")
        real(s, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(choosing, "_extend_text", extend)


class BrokenGrammar:
    """Compiles, then fails when it is asked for a mask, or when it is told a token."""

    def __init__(self, when: str) -> None:
        self.when = when

    def matcher(self) -> "BrokenGrammar":
        return self

    def allowed(self, drafts: list[int]) -> tuple[list[torch.Tensor], int]:
        if self.when == "mask":
            raise RuntimeError("mask")
        return [torch.ones(128, dtype=torch.bool)] * (len(drafts) + 1), len(drafts)

    def advance(self, tokens: list[int]) -> None:
        raise RuntimeError("advance")


@pytest.mark.parametrize("stage", ["sample", "detokenise", "mask", "advance"])
def test_a_fault_of_one_request_ends_that_request_alone(
    loop: EngineLoop, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stage == "sample":
        break_sampling(monkeypatch)
    if stage == "detokenise":
        break_text(monkeypatch)
    grammar = BrokenGrammar(stage) if stage in ("mask", "advance") else None
    wanted = StructuredOutputsParams(json_object=True) if grammar else None
    answers = Answers()
    loop.submit("good", [6], params(40), answers)
    loop.submit("bad", [5], params(40, structured_outputs=wanted), answers, grammar=grammar)  # type: ignore[arg-type]
    answers.wait("good", "bad")
    assert (answers.reason("bad"), answers.reason("good")) == ("error", "length")
    assert len(answers.tokens("good")) == 40
    loop.submit("next", [7], params(3), answers)
    answers.wait("next")
    assert answers.reason("next") == "length"
    assert loop.engine.stats.failed == 1


@pytest.mark.parametrize("stage", ["schedule", "forward", "memory"])
def test_a_failed_step_fails_its_requests_and_the_engine_lives(
    loop: EngineLoop, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, name = (loop.engine.scheduler, "schedule") if stage == "schedule" else (loop.engine.runner, "forward")
    answers, failures = Answers(), [torch.OutOfMemoryError("full") if stage == "memory" else RuntimeError(stage)]
    real = getattr(type(target), name)

    def fail_once(self: object, *args: object) -> object:
        if failures and answers.deltas["struck"]:
            raise failures.pop()
        return real(self, *args)

    monkeypatch.setattr(type(target), name, fail_once)
    loop.submit("struck", [5, 6], params(200), answers)
    answers.wait("struck")
    assert answers.reason("struck") == "error"
    assert "the step failed" in str(answers.deltas["struck"][-1].error)
    loop.submit("next", [7], params(3), answers)
    answers.wait("next")
    assert answers.reason("next") == "length"
    assert loop.alive


def test_numbers_that_are_not_finite_end_their_request_and_do_not_linger_in_the_cache(
    loop: EngineLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Runner.forward
    spoil = [True]

    def spoiled(
        self: Runner, parts: Sequence[Part], tokens: Sequence[Sequence[int]]
    ) -> tuple[list[torch.Tensor], bool]:
        hidden, finite = real(self, parts, tokens)
        for i, ids in enumerate(tokens):
            if spoil and 99 in ids:
                spoil.clear()
                hidden[i] = hidden[i] * torch.nan
                self.cache.keys[:, :4] = torch.nan
                finite = False
        return hidden, finite

    answers = Answers()
    loop.submit("clean", [7, 8, 9], params(10), answers)
    answers.wait("clean")
    monkeypatch.setattr(Runner, "forward", spoiled)
    loop.submit("spoilt", [99, 6], params(10), answers)
    answers.wait("spoilt")
    assert answers.reason("spoilt") == "error"
    assert "not finite" in str(answers.deltas["spoilt"][-1].error)
    loop.submit("clean again", [7, 8, 9], params(10), answers)
    answers.wait("clean again")
    assert answers.tokens("clean again") == answers.tokens("clean")


def test_a_draft_that_fails_costs_drafts_and_no_answer(loop: EngineLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers()
    loop.submit("before", [5, 6], params(20), answers)
    answers.wait("before")

    def broken(self: object, *args: object) -> None:
        raise RuntimeError("draft")

    monkeypatch.setattr(core.MtpDrafter, "draft", broken)
    loop.submit("after", [5, 6], params(20), answers)
    answers.wait("after")
    assert answers.tokens("after") == answers.tokens("before")


def test_an_engine_that_is_broken_tells_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, answers = EngineLoop(engine()), Answers()

    def broken(self: object) -> None:
        raise MemoryError("beyond repair")

    monkeypatch.setattr(Engine, "step", broken)
    loop.start()
    loop.submit("a", [5], params(n=2), answers)
    answers.wait("a")
    deadline = time.monotonic() + 10
    while loop.alive and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [d.finish_reason for d in answers.deltas["a"]] == ["error", "error"]
    assert not loop.alive
    with pytest.raises(QueueFullError, match="stopped"):
        loop.submit("b", [5], params(), answers)
    loop.stop()
