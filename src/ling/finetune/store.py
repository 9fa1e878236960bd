"""Tokenised samples, one behind the other: in memory, or in a directory that is mapped into it.

tokens.bin    int32, all samples           samples.npy   (S, 3) int64: end in tokens, file, place in the file
learnt.bin    one byte each, 0 or 1        meta.json     files, report, and what all this was made from
"""

import hashlib
import io
import json
import logging
import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ling.checkpoint.atomic import atomic_directory
from ling.data.documents import Document
from ling.errors import DataError
from ling.finetune.packing import Integers
from ling.finetune.report import Report

logger = logging.getLogger(__name__)

_META = "meta.json"
_LAYOUT = 1
"""Number of this layout; another one is made anew."""


class Store:
    """Samples by their number, in the order in which they were read."""

    def __init__(
        self,
        tokens: NDArray[np.int32],
        learnt: NDArray[np.uint8],
        samples: Integers,
        files: list[str],
        fingerprint: str,
    ) -> None:
        assert len(tokens) == len(learnt) == (samples[-1, 0] if len(samples) else 0), (len(tokens), len(learnt))
        self._tokens, self._learnt, self._samples, self._files = tokens, learnt, samples, files
        self.fingerprint = fingerprint
        """Identifies the tokens and what is learnt of them."""
        self.lengths: Integers = np.diff(samples[:, 0], prepend=0)
        """(S,) tokens of each sample."""

    def __len__(self) -> int:
        return len(self._samples)

    def document(self, sample: int) -> Document:
        """Return one sample for the trainer."""
        end = int(self._samples[sample, 0])
        start = end - int(self.lengths[sample])
        return Document(self._tokens[start:end].tolist(), self._learnt[start:end].astype(bool).tolist())

    def where(self, sample: int) -> str:
        """Return where a sample comes from: FILE:LINE, or FILE:ROW for parquet."""
        _, file, place = self._samples[sample].tolist()
        return f"{self._files[file]}:{place}"

    def split(self, heldout_percent: float) -> tuple[Integers, Integers]:
        """Return the samples to learn from and those held out, which a hash of their tokens chooses."""
        limit = int(heldout_percent / 100 * 2**64)
        heldout = np.zeros(len(self), bool)
        if limit:
            for sample, end in enumerate(self._samples[:, 0].tolist()):
                tokens = self._tokens[end - int(self.lengths[sample]) : end]
                digest = hashlib.blake2b(tokens.tobytes(), digest_size=8).digest()
                heldout[sample] = int.from_bytes(digest, "big") < limit
        return np.flatnonzero(~heldout), np.flatnonzero(heldout)


class StoreWriter:
    """Takes samples one after the other."""

    def __init__(self, tokens: BinaryIO, learnt: BinaryIO) -> None:
        self._tokens, self._learnt = tokens, learnt
        self._rows: list[tuple[int, int, int]] = []
        self._hash = hashlib.blake2b(digest_size=16)
        self._end = 0

    def add(self, tokens: NDArray[np.int32], learnt: NDArray[np.uint8], file: int, place: int) -> None:
        """Append one sample that comes from `place` of file number `file`."""
        self._end += len(tokens)
        self._rows.append((self._end, file, place))
        for target, values in ((self._tokens, tokens), (self._learnt, learnt)):
            written = values.tobytes()
            target.write(written)
            self._hash.update(written)
        self._hash.update(self._end.to_bytes(8, "little"))

    def samples(self) -> Integers:
        return np.array(self._rows, np.int64).reshape(-1, 3)

    def fingerprint(self) -> str:
        return self._hash.hexdigest()


class MemoryStore:
    """Builds a store that stays in memory: five bytes a token."""

    def __init__(self) -> None:
        self._tokens, self._learnt = io.BytesIO(), io.BytesIO()
        self.writer = StoreWriter(self._tokens, self._learnt)

    def finish(self, files: list[str]) -> Store:
        tokens, learnt = (
            np.frombuffer(self._tokens.getbuffer(), np.int32),
            np.frombuffer(self._learnt.getbuffer(), np.uint8),
        )
        return Store(tokens, learnt, self.writer.samples(), files, self.writer.fingerprint())


@contextmanager
def writing_store(directory: Path, key: str, files: list[str], report: Report) -> Iterator[StoreWriter]:
    """Yield a writer whose samples become `directory` when the block ends well.

    report  is written as it stands at the end of the block
    Raises DataError if there is something else in the directory.
    """
    if directory.exists() and not (directory / _META).is_file() and (directory.is_file() or any(directory.iterdir())):
        raise DataError(f"finetune.cache {directory} holds something else; choose a directory of its own")
    with atomic_directory(directory, overwrite=True) as partial, ExitStack() as stack:
        opened = [stack.enter_context((partial / name).open("wb")) for name in ("tokens.bin", "learnt.bin")]
        writer = StoreWriter(*opened)
        yield writer
        np.save(partial / "samples.npy", writer.samples())
        meta = {
            "layout": _LAYOUT, "key": key, "files": files, "fingerprint": writer.fingerprint(), "report": report.tree(),
        }  # fmt: skip
        (partial / _META).write_text(json.dumps(meta), encoding="utf-8")


def open_store(directory: Path, key: str) -> tuple[Store, Report] | None:
    """Open what `writing_store` left, if it was made from `key` and is whole; None otherwise."""
    meta = _read_meta(directory / _META)
    if meta is None or meta.get("key") != key or meta.get("layout") != _LAYOUT:
        return None
    try:
        samples = np.load(directory / "samples.npy", allow_pickle=False)
        tokens = np.frombuffer(_mapped(directory / "tokens.bin"), np.int32)
        learnt = np.frombuffer(_mapped(directory / "learnt.bin"), np.uint8)
        if not len(tokens) == len(learnt) == samples[-1, 0]:
            raise ValueError("sizes differ")
        report = Report.from_tree(meta["report"])
        return Store(tokens, learnt, samples, meta["files"], meta["fingerprint"]), report
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError) as error:
        logger.warning("finetune.cache %s is damaged (%s) and is made anew", directory, error)
        return None


def _read_meta(path: Path) -> dict[str, Any] | None:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return meta if isinstance(meta, dict) else None


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
