"""Where two continuations part, and whether rounding explains it."""

import math

import pytest

from ling.eval.agreement import Agreement, Continuation, compare

STOPS = (8, 9)


def nats(sequence) -> float:
    """A model that likes token t at t / 10 nats, whatever came before."""
    return sequence[-1] / 10 if sequence[-1] < 100 else math.inf


def told(*tokens: int, ended: bool = False, logprobs: tuple[float, ...] | None = None) -> Continuation:
    return Continuation(tokens, ended, logprobs)


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed", "gap"),
    [
        (told(1, 2, 3), told(1, 2, 3), 3, None),
        (told(1, 2, 3), told(1, 2, 5), 2, 0.2),
        (told(1, 2, 3), told(1, 7, 3), 1, 0.5),
        (told(1, 2), told(1, 2, 3), 2, None),  # ours was cut off
        (told(1, 2, ended=True), told(1, 2, 3), 2, -0.5),  # they went on: the likelier stop token is 8
        (told(1, 2, 3), told(1, ended=True), 1, 0.6),
        (told(1, ended=True), told(1, ended=True), 1, None),
        (told(1), told(100), 0, math.inf),
    ],
)
def test_the_first_difference_counts_and_its_gap_is_in_our_eyes(ours, theirs, agreed: int, gap) -> None:
    found = compare([0], ours, theirs, STOPS, nats)
    assert found.agreed == agreed
    assert found.parted == (gap is not None)
    assert found.gap_nats == (None if gap is None else pytest.approx(gap))


def test_only_agreed_tokens_are_compared_by_number() -> None:
    ours, theirs = told(1, 2, 3, logprobs=(-1.0, -2.0, -3.0)), told(1, 2, 4, logprobs=(-1.5, -2.0, -9.0))
    both = Agreement((compare([0], ours, theirs, STOPS, nats),))
    assert both.differences == (0.5, 0.0)
    assert (both.agreed_tokens, both.compared_tokens) == (2, 3)
    assert both.mean_difference == 0.25


@pytest.mark.parametrize(
    ("theirs", "complaint"),
    [
        (told(1, 2, 4), None),  # 0.1 nats: a near tie
        (told(1, 2, 9), "1 of 1 continuations part from ours where there is no near tie (by up to 0.60 nats)"),
        (told(1, 2, 3, logprobs=(0.5, 0.5, 0.5)), "the tokens agree, their log-probabilities differ by 0.50 nats"),
    ],
)
def test_rounding_is_no_complaint(theirs: Continuation, complaint: str | None) -> None:
    ours = told(1, 2, 3, logprobs=(0.0, 0.0, 0.0))
    found = Agreement((compare([0], ours, theirs, STOPS, nats),)).complaint
    assert found is None if complaint is None else str(found).startswith(complaint)


def test_nothing_written_is_no_agreement() -> None:
    assert Agreement((compare([0], told(), told(), STOPS, nats),)).complaint == "neither engine wrote a token"
