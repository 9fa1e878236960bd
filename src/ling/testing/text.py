"""Stand-ins for text where a test is about token ids."""

from collections.abc import Iterable


class IdTokenizer:
    """A tokenizer whose text is its ids, for models without one."""

    stop_ids: tuple[int, ...] = ()

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        return [int(part) for part in text.split()]

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        return " ".join(str(i) for i in ids)

    def token_bytes(self, id: int) -> bytes:
        return f"{id} ".encode()

    def is_special(self, id: int) -> bool:
        return False
