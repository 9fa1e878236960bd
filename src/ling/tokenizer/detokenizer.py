"""Text from ids as they come, one at a time, never half a character."""

import codecs

from ling.tokenizer.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Turn a growing list of ids into text.

    A token may end inside a character; its bytes wait for the next ones. Bytes that cannot become UTF-8 any
    more come out as U+FFFD. All pushes and `finish`, joined, are `tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """Take the next id and return the text that it completes, if any."""
        if self._skip_special and self._tokenizer.is_special(id):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    def finish(self) -> str:
        """Return U+FFFD for a character that never became whole, and start anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
