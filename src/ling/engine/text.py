"""The text of an answer as its tokens come: never half a character, never the beginning of a stop text."""

from ling.engine.request import SamplingParams
from ling.tokenizer import IncrementalDetokenizer, Tokenizer


class AnswerText:
    """Turns tokens into text that is certain, and finds the texts that end an answer.

    Text that may turn out to begin a stop text is held back. All pieces, joined, are the answer's text.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, skip_special=params.skip_special_tokens)
        self._stops = params.stops
        self._keep_stop = params.include_stop_str_in_output
        self._held = ""
        self._too_early = params.min_tokens
        """Tokens to come whose text ends nothing."""

    def push(self, token: int) -> tuple[str, str | None]:
        """Take a token; return new text, and the stop text that it completes, if any (what follows it is dropped)."""
        piece = self._detokenizer.push(token)
        if not self._stops:
            return piece, None
        text, known = self._held + piece, len(self._held)
        self._too_early -= 1
        found = [(at, -len(stop), stop) for stop in self._stops
                 if (at := text.find(stop, max(0, known + 1 - len(stop)))) >= 0]  # fmt: skip
        if found and self._too_early < 0:
            at, length, stop = min(found)
            self._held = ""
            return text[: at - length if self._keep_stop else at], stop
        held = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], None

    def finish(self) -> str:
        """Return what was held back: no stop text came of it."""
        rest, self._held = self._held, ""
        return rest + self._detokenizer.finish()


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-n:])), 0)
