"""What is done to records, by this process or by several, in chunks that are taken back in order.

Nothing that comes out depends on how many processes there were. This module is what each of them imports: it is kept
free of torch, which would take them seconds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ling.config.finetune import FinetuneConfig
from ling.data.records import DamagedRecordError, Record
from ling.data.workers import map_in_order
from ling.finetune.formats import AlpacaFormat, ChatFormat
from ling.finetune.render import Note, render_sample
from ling.finetune.sample import Reason, SampleError
from ling.tokenizer import Tokenizer


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
        except DamagedRecordError as error:
            return Left("damaged record", str(error))
        document = rendered.document
        tokens, learnt = np.array(document.tokens, np.int32), np.array(document.learnt, np.uint8)
        return Taken(tokens, learnt, rendered.notes, sample.ignored_keys)

    def through(self, chunks: Iterator[Chunk], workers: int) -> Iterator[tuple[Chunk, list[Taken | Left]]]:
        """Yield every chunk with what became of its records, in order."""
        return map_in_order(self, chunks, workers, advice="lower finetune.workers")
