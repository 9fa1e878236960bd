"""How many tokens a request took."""

from collections.abc import Callable, Sequence
from typing import Any

from ling.engine.request import Delta

Drafts = Callable[[], dict[str, int] | None]
"""Tells how many tokens were drafted and accepted so far; None where the engine does not draft."""


class Usage:
    """Counts from deltas; a prompt counts once however many answers it has."""

    def __init__(self, prompt_lengths: Sequence[int], drafts: Drafts) -> None:
        self._prompt_tokens = sum(prompt_lengths)
        self._cached = [0] * len(prompt_lengths)
        self._completion_tokens = 0
        self._drafts = drafts

    def count(self, prompt_index: int, delta: Delta) -> None:
        self._completion_tokens += len(delta.token_ids)
        self._cached[prompt_index] = max(self._cached[prompt_index], delta.num_cached_tokens)

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI's, and under "ling" what drafting did."""
        drafts = self._drafts()
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached)},
            **({} if drafts is None else {"ling": drafts}),
        }
