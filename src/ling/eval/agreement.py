"""How far two engines agree on the same weights: greedy continuations of the same token ids, side by side.

Greedy text says little by itself: after one near tie that rounding decides the other way, everything that follows is
another text. So only the agreed prefix counts, with the differences of its log-probabilities, and each parting is held
against our model: how many nats lie between what we chose and what they did.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

NEAR_TIE_NATS = 0.25
"""Logits between 16 and 32 have steps of 0.125 in bfloat16; two of them may be off by one step each."""
MOST_MEAN_NATS = 0.1
"""Log-probabilities of the same tokens that differ by more on average do not come from the same weights."""

NegativeLogLikelihood = Callable[[Sequence[int]], float]
"""Nats of a sequence's last token after those before, by our model."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """What an engine wrote after a prompt, without the token that ended it."""

    tokens: tuple[int, ...]
    ended: bool
    """Whether it stopped of itself, not at the length asked for."""
    logprobs: tuple[float, ...] | None = None
    """Of the tokens, or of the first ones; None: the engine does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two continuations of one prompt."""

    ours: Continuation
    theirs: Continuation
    agreed: int
    """Tokens before the first difference."""
    parted: bool
    gap_nats: float | None
    """Our log-probability of our token less that of theirs, where they part; None if they do not."""
    parting: tuple[int | None, int | None] = (None, None)
    """Our token and theirs where they part; None: the engine stopped there."""
    differences: tuple[float, ...]
    """|ours - theirs| of the agreed tokens' log-probabilities; empty if theirs are not known."""

    @property
    def near_tie(self) -> bool:
        return self.gap_nats is not None and abs(self.gap_nats) <= NEAR_TIE_NATS


@dataclass(frozen=True, slots=True)
class Agreement:
    """All prompts together."""

    comparisons: tuple[Comparison, ...]

    @property
    def agreed_tokens(self) -> int:
        return sum(c.agreed for c in self.comparisons)

    @property
    def compared_tokens(self) -> int:
        """Tokens up to the first difference, that one included: what follows it was never asked of both."""
        return sum(c.agreed + c.parted for c in self.comparisons)

    @property
    def agreement_percent(self) -> float:
        return 100 * self.agreed_tokens / max(1, self.compared_tokens)

    @property
    def parted(self) -> tuple[Comparison, ...]:
        return tuple(c for c in self.comparisons if c.parted)

    @property
    def real_partings(self) -> tuple[Comparison, ...]:
        """Those that no rounding explains."""
        return tuple(c for c in self.parted if not c.near_tie)

    @property
    def differences(self) -> tuple[float, ...]:
        return tuple(x for c in self.comparisons for x in c.differences)

    @property
    def mean_difference(self) -> float | None:
        return sum(self.differences) / len(self.differences) if self.differences else None

    @property
    def complaint(self) -> str | None:
        """Why the two are not the same model, or None if all they differ by is rounding."""
        if not self.compared_tokens:
            return "neither engine wrote a token"
        if real := self.real_partings:
            largest = max(abs(c.gap_nats or 0.0) for c in real)
            return (
                f"{len(real)} of {len(self.comparisons)} continuations part from ours where there is no near tie "
                f"(by up to {largest:.2f} nats)"
            )
        if self.mean_difference is not None and self.mean_difference > MOST_MEAN_NATS:
            return f"the tokens agree, their log-probabilities differ by {self.mean_difference:.2f} nats on average"
        return None


def compare(
    prompt: Sequence[int],
    ours: Continuation,
    theirs: Continuation,
    stop_ids: Sequence[int],
    negative_log_likelihood: NegativeLogLikelihood,
) -> Comparison:
    """Find where two continuations of `prompt` part, and by how much in our model's eyes."""
    agreed = 0
    for x, y in zip(ours.tokens, theirs.tokens):
        if x != y:
            break
        agreed += 1
    parted = (_next(ours, agreed), _next(theirs, agreed))
    differences: tuple[float, ...] = ()
    if ours.logprobs is not None and theirs.logprobs is not None:
        differences = tuple(abs(x - y) for x, y in zip(ours.logprobs[:agreed], theirs.logprobs[:agreed]))
    gap = None
    if has_parted := parted[0] != parted[1] and None not in parted:
        prefix = [*prompt, *ours.tokens[:agreed]]
        nats = [
            min(negative_log_likelihood([*prefix, token]) for token in (stop_ids if x == _END else (x,)))
            for x in (parted[0], parted[1])
            if x is not None
        ]
        gap = nats[1] - nats[0]
    shown = tuple(None if x == _END else x for x in parted) if has_parted else (None, None)
    return Comparison(
        ours=ours, theirs=theirs, agreed=agreed, parted=has_parted, gap_nats=gap, parting=(shown[0], shown[1]),
        differences=differences,
    )  # fmt: skip


_END = -1


def _next(continuation: Continuation, index: int) -> int | None:
    """Return the token at `index`, `_END` where the engine stopped of itself, None where it was cut off."""
    if index < len(continuation.tokens):
        return continuation.tokens[index]
    return _END if continuation.ended else None
