"""How many tokens are drafted: what measured times and acceptance say, in a simulated engine with known costs."""

import itertools
import random
from collections import Counter
from collections.abc import Callable

import pytest

from ling.engine.draft_length import DraftLength

MOST = 3


def step_seconds(verified: int, made: int) -> float:
    """A plain step takes 1; a row of verification a little, the first draft more than those after it."""
    return 1 + 0.12 * verified + (0.42 + 0.27 * (made - 1) if made else 0)


def simulate(
    length: DraftLength, accepts: Callable[[int], float], steps: int, answers: int = 1
) -> tuple[float, Counter]:
    """Return tokens per second and how often each number was drafted; times are noisy, upwards as in life."""
    rng = random.Random(0)
    seconds = tokens = verified = 0
    used: Counter = Counter()
    for _ in range(steps):
        made = length.choose(answers)
        accepted = 0
        while accepted < verified and rng.random() < accepts(accepted):
            accepted += 1
        if verified:
            length.count(verified, accepted)
        own = step_seconds(verified, made)
        seconds += own
        tokens += 1 + accepted
        used[made] += 1
        length.observe(answers, verified, made, own * (1 + abs(rng.gauss(0, 0.1))))
        verified = made
    return tokens / seconds, used


def best_rate(accepts: Callable[[int], float]) -> float:
    shares = [1.0, *itertools.accumulate((accepts(i) for i in range(MOST)), lambda a, b: a * b)]
    return max(sum(shares[: k + 1]) / step_seconds(k, k) for k in range(MOST + 1))


def test_drafts_that_are_always_wrong_are_hardly_made() -> None:
    length = DraftLength(MOST)
    simulate(length, lambda depth: 0.0, 200)
    rate, used = simulate(length, lambda depth: 0.0, 2000)
    assert used[0] >= 0.98 * 2000
    assert rate > 0.98


@pytest.mark.parametrize("share", [0.5, 0.7, 0.86, 0.97])
def test_the_rate_comes_close_to_that_of_the_best_number(share: float) -> None:
    length = DraftLength(MOST)
    rate, _ = simulate(length, lambda depth: share, 3000)
    assert rate > 0.95 * best_rate(lambda depth: share)


def test_a_change_of_the_text_is_noticed() -> None:
    length = DraftLength(MOST)
    simulate(length, lambda depth: 0.95, 1000)
    _, used = simulate(length, lambda depth: 0.0, 300)
    assert used[0] > 200
    _, used = simulate(length, lambda depth: 0.95, 3000)
    assert used[2] + used[3] > 1000


def test_each_load_has_its_own_number() -> None:
    length = DraftLength(MOST)
    simulate(length, lambda depth: 0.9, 500, answers=1)
    for _ in range(400):  # where 16 run at once, a draft costs as much as a step of its own
        made = length.choose(16)
        length.observe(16, made, made, 1.0 + made)
    assert length.choose(16) == 0
    assert length.choose(1) > 0


def test_nothing_is_drafted_where_more_answers_run_than_may_draft() -> None:
    length = DraftLength(MOST, most_answers=2)
    assert length.choose(3) == 0
    assert length.choose(2) > 0
    assert DraftLength(MOST, adaptive=False, most_answers=2).choose(3) == MOST


def test_fixed_numbers_stay() -> None:
    length = DraftLength(2, adaptive=False)
    _, used = simulate(length, lambda depth: 0.0, 50)
    assert used == {2: 50}
    assert DraftLength(0).choose(5) == 0


def test_a_draft_behind_a_wrong_one_is_not_judged() -> None:
    length = DraftLength(3)
    for _ in range(300):
        length.count(3, 1)
    assert length.acceptance(0) > 0.99
    assert length.acceptance(1) < 0.01
    assert length.acceptance(2) == DraftLength(3).acceptance(2)
    assert length.tokens_per_step(1) == pytest.approx(2, abs=0.02)
