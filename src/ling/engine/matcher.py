"""One answer's way through a grammar: which tokens may come next."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ling.engine.json_bounds import JsonBounds
from ling.errors import RequestError
from ling.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

_LONGEST_REASON = 240
_SPELT_OUT = {
    "NoExtension": "nothing may follow",
    "NoExtensionBias": "no text fits it: its parts exclude each other, or it has no end",
    "MaxTokensTotal": "it ended the text at its own limit of tokens",
    "MaxTokensParser": "it ended the text at its own limit of tokens",
    "LexerTooComplex": "its terminals have more states than are allowed; make them simpler",
    "ParserTooComplex": "it has more states than are allowed; make it simpler",
}
"""Where llguidance gives the name of a reason for stopping and nothing else."""
_BOUNDARY = re.compile(r"lookarounds not supported yet; \w+ in regex")
"""What `\\b` and an inner `^` are called there."""


class Vocabulary:
    """What masks need to know about the tokenizer."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        assert vocab_size >= tokenizer.vocab_size, (vocab_size, tokenizer.vocab_size)
        self.size = vocab_size
        self.stop_ids = tokenizer.stop_ids
        self.token_bytes = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
        self.special_ids = [id for id in range(tokenizer.vocab_size) if tokenizer.is_special(id)]
        self.stops = torch.tensor(self.stop_ids)
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Encode `text` without special tokens."""
        return self._tokenizer.encode(text, special=False)


class Matcher:
    """Follows one answer. Not for two threads at once."""

    def __init__(self, matcher: "LLMatcher", vocabulary: Vocabulary, bounds: JsonBounds | None) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._bounds = bounds
        self._place = JsonBounds.START
        self._finished = False
        self._known: dict[tuple[int, ...], Tensor] = {}
        """Masks after drafts since the last `advance`: drafting asks after each draft, verification for all again."""

    @property
    def finished(self) -> bool:
        """Whether a stop id was consumed."""
        return self._finished

    def allowed(self, drafts: Sequence[int] = ()) -> tuple[list[Tensor], int]:
        """Say which tokens may follow, now and after each draft; the state stays as it is.

        return  v + 1 masks (V,) bool on the CPU, mask i for after drafts[:i]; and v, how many leading drafts are
                allowed. V is the model's vocabulary. Never empty: where the text can only end, and after its end,
                the stop ids are allowed. Masks are kept and given again: not to be written to.
        Raises RequestError where the grammar leads nowhere or exceeds llguidance's limits.
        """
        place, finished = self._place, self._finished
        masks, consumed = [self._mask_after(())], 0
        try:
            for draft in drafts:
                if not (0 <= draft < self._vocabulary.size and masks[-1][draft]):
                    break
                consumed += self._consume(draft)
                masks.append(self._mask_after((*drafts[: len(masks)],)))
        finally:
            if consumed:
                self._matcher.rollback(consumed)
            self._place, self._finished = place, finished
        return masks, len(masks) - 1

    def advance(self, token_ids: Sequence[int]) -> None:
        """Consume tokens for good, up to a stop id. Raises RequestError for one that the grammar does not allow."""
        self._known.clear()
        for id in token_ids:
            if not self._finished:
                self._consume(id)

    def _consume(self, id: int) -> int:
        """Go on by one token; return how many tokens llguidance has to take back to undo it."""
        if id in self._vocabulary.stop_ids:
            self._finished = True  # llguidance is not told: where it stopped by itself, it would not count the token
            return 0
        if self._finished or id >= len(self._vocabulary.token_bytes) or not self._matcher.consume_token(id):
            reason = one_line(self._matcher.get_error()) or "nothing may follow the end"
            raise RequestError(f"token {id} does not follow the grammar: {reason}")
        if self._bounds is not None:
            self._place = self._bounds.after(self._place, self._vocabulary.token_bytes[id])
        return 1

    def _mask_after(self, drafts: tuple[int, ...]) -> Tensor:
        """Take the mask after `drafts`, which are consumed already, from those that are known, or compute it."""
        if drafts not in self._known:
            self._known[drafts] = self._mask()
        return self._known[drafts]

    def _mask(self) -> Tensor:
        """Compute the mask (V,) bool of what may come here."""
        mask = torch.zeros(self._vocabulary.size, dtype=torch.bool)
        if self._finished:
            mask[self._vocabulary.stops] = True
            return mask
        words = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)  # one bit per token, lowest first
        if self._matcher.is_error():
            raise RequestError(f"the grammar cannot be followed further: {one_line(self._matcher.get_error())}")
        known = len(self._vocabulary.token_bytes)
        mask[:known] = torch.from_numpy(np.unpackbits(words, count=known, bitorder="little").view(np.bool_))
        # A Lark grammar may name a stop id as a token of its own; it ends the answer all the same.
        mask[self._vocabulary.stops] = self._matcher.is_accepting()
        if self._bounds is not None:
            mask = self._bounds.narrow(self._place, mask)
        if not mask.any():
            raise RequestError("the grammar cannot be followed further: no token may come next")
        return mask


def one_line(error: str) -> str:
    """Shorten a message of llguidance to its reason: no states, no excerpts of the grammar, one line."""
    text = re.split(r"\n *\d+ \| |\n<|<non-verbose/>", error)[0]
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("    ")]
    reason = " ".join(" ".join(lines).split())
    reason = _BOUNDARY.sub("word boundaries, and anchors but at its ends, are not supported:", reason)
    reason = _SPELT_OUT.get(reason, reason)
    return reason if len(reason) <= _LONGEST_REASON else reason[: _LONGEST_REASON - 3] + "..."
