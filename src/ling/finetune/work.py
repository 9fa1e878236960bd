"""What is done to records, by this process or by several, in chunks that are taken back in order.

Nothing that comes out depends on how many processes there were. This module is what each of them imports: it is kept
free of torch, which would take them seconds.
"""

import collections
import concurrent.futures
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ling.config.finetune import FinetuneConfig
from ling.errors import DataError
from ling.finetune.formats import AlpacaFormat, ChatFormat
from ling.finetune.records import Record
from ling.finetune.render import Note, render_sample
from ling.finetune.sample import Reason, SampleError
from ling.tokenizer import Tokenizer

_CHUNKS_AHEAD = 4
"""Chunks that wait for each process."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Records of one file.

    source        number of the data set
    file          number of the file over all data sets
    bytes_before  of all files before this one
    """

    source: int
    file: int
    bytes_before: int
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Taken:
    """A record that became a sample."""

    tokens: NDArray[np.int32]
    learnt: NDArray[np.uint8]
    notes: frozenset[Note]
    ignored_keys: frozenset[str]


@dataclass(frozen=True, slots=True)
class Left:
    """A record that is left out."""

    reason: Reason
    detail: str


class Work:
    """What is done to a chunk, here or in another process."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: FinetuneConfig,
        formats: Sequence[ChatFormat | AlpacaFormat],
        max_tokens: int,
    ) -> None:
        self._tokenizer, self._config, self._formats, self._max_tokens = tokenizer, config, formats, max_tokens

    def __call__(self, chunk: Chunk) -> list[Taken | Left]:
        return [self._one(record, self._formats[chunk.source]) for record in chunk.records]

    def _one(self, record: Record, format: ChatFormat | AlpacaFormat) -> Taken | Left:
        try:
            sample = format.sample(record.parse())
            rendered = render_sample(sample, self._tokenizer, self._config, self._max_tokens)
        except SampleError as error:
            return Left(error.reason, error.detail)
        document = rendered.document
        tokens, learnt = np.array(document.tokens, np.int32), np.array(document.learnt, np.uint8)
        return Taken(tokens, learnt, rendered.notes, sample.ignored_keys)

    def through(self, chunks: Iterator[Chunk], workers: int) -> Iterator[tuple[Chunk, list[Taken | Left]]]:
        """Yield every chunk with what became of its records, in order."""
        if not workers:
            yield from ((chunk, self(chunk)) for chunk in chunks)
            return
        context = multiprocessing.get_context("spawn")
        waiting: collections.deque[tuple[Chunk, concurrent.futures.Future[list[Taken | Left]]]] = collections.deque()
        pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (self,))
        try:
            for chunk in chunks:
                with _interrupts_ignored():  # by processes that this starts: their parent decides
                    future = pool.submit(_work_on, chunk)
                waiting.append((chunk, future))
                if len(waiting) >= workers * _CHUNKS_AHEAD:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for first, future in waiting:
                yield first, future.result()
        except BrokenProcessPool:
            raise DataError(
                "a process that tokenises has died, of too little memory perhaps; lower finetune.workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignore Ctrl-C for a moment; processes that are started then ignore it for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_work: Work | None = None  # of a worker process


def _start_worker(work: Work) -> None:
    global _work
    _work = work


def _work_on(chunk: Chunk) -> list[Taken | Left]:
    assert _work is not None
    return _work(chunk)
