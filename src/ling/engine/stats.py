"""What an engine has done since its start, and what it has done for one request."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ling.engine.request import FinishReason


@dataclass(slots=True)
class EngineStats:
    """Counters only ever grow; the difference of two copies is what happened in between."""

    seconds: float = 0.0
    """Spent in steps."""
    steps: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    """Generated."""
    draft_rounds: int = 0
    """Verifications: how often tokens were proposed behind an answer."""
    drafted: int = 0
    accepted: int = 0
    accepted_per_position: list[int] = field(default_factory=list)
    preemptions: int = 0
    queried_tokens: int = 0
    """Prompt tokens looked up in the prefix cache."""
    cached_tokens: int = 0
    """Those that were found there."""
    ended: dict[str, int] = field(default_factory=dict)
    """Answers by finish reason."""

    @property
    def failed(self) -> int:
        return self.ended.get("error", 0)

    @property
    def acceptance_fraction(self) -> float:
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def count_drafts(self, drafted: int, accepted: int) -> None:
        self.draft_rounds += 1
        self.drafted += drafted
        self.accepted += accepted
        missing = drafted - len(self.accepted_per_position)
        self.accepted_per_position += [0] * missing
        for depth in range(accepted):
            self.accepted_per_position[depth] += 1

    def count_end(self, reason: FinishReason | None) -> None:
        assert reason is not None
        self.ended[reason] = self.ended.get(reason, 0) + 1

    def since(self, before: "EngineStats") -> "EngineStats":
        """Return what happened since `before`, a copy of these counters."""
        earlier = [*before.accepted_per_position, *[0] * len(self.accepted_per_position)]
        return EngineStats(
            seconds=self.seconds - before.seconds,
            steps=self.steps - before.steps,
            requests=self.requests - before.requests,
            prompt_tokens=self.prompt_tokens - before.prompt_tokens,
            tokens=self.tokens - before.tokens,
            draft_rounds=self.draft_rounds - before.draft_rounds,
            drafted=self.drafted - before.drafted,
            accepted=self.accepted - before.accepted,
            accepted_per_position=[a - b for a, b in zip(self.accepted_per_position, earlier)],
            preemptions=self.preemptions - before.preemptions,
            queried_tokens=self.queried_tokens - before.queried_tokens,
            cached_tokens=self.cached_tokens - before.cached_tokens,
            ended={k: v - before.ended.get(k, 0) for k, v in self.ended.items()},
        )


@dataclass(slots=True)
class RequestStats:
    """What the engine has done for one request so far; the engine's thread keeps it up."""

    submitted: float
    """When it was queued; of `time.monotonic`, as is the next."""
    begun: float | None = None
    """When the first step with a part of it began; None: it waits."""
    drafted: int = 0
    accepted: int = 0
    """Proposed tokens that became part of an answer."""

    def count_drafts(self, drafts: Sequence[int], token_ids: Sequence[int]) -> None:
        """drafts were proposed where token_ids became part of an answer"""
        self.drafted += len(drafts)
        for proposed, token in zip(drafts, token_ids):  # the answer may end inside its drafts
            if proposed != token:
                break
            self.accepted += 1
