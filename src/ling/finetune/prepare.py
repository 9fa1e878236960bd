"""From data sets to tokenised samples: read, understood, rendered; what cannot be is left out and reported."""

import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ling.config.finetune import FinetuneConfig
from ling.data.records import read_records
from ling.errors import DataError
from ling.finetune.packing import Integers
from ling.finetune.report import Report
from ling.finetune.sources import Source, find_sources
from ling.finetune.store import MemoryStore, Store, StoreWriter, open_store, writing_store
from ling.finetune.work import Chunk, Left, Taken, Work
from ling.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Takes bytes done and bytes in all."""

_RECORDS_PER_CHUNK = 64
_KEY_FIELDS = (
    "format",
    "max_samples",
    "thinking",
    "default_system",
    "learn",
    "end_of_text",
    "system_newline",
    "too_long",
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that fine-tuning reads."""

    store: Store
    report: Report
    training: Integers
    """Indices of the samples to learn from."""
    heldout: Integers


def prepare(
    config: FinetuneConfig, tokenizer: Tokenizer, *, sequence_length: int, progress: Progress | None = None
) -> Prepared:
    """Tokenise the data that `config` names, or take it from its cache.

    sequence_length  longest sample, unless `config.max_tokens` says less or more
    Raises DataError for data that cannot be read, or of which nothing is left.
    """
    sources = find_sources(config)
    reading = _Reading(config, sources, tokenizer, config.max_tokens or sequence_length, progress or _silent)
    if config.cache is None:
        memory = MemoryStore()
        report = reading.run(memory.writer)
        store = memory.finish(reading.files)
    else:
        store, report = _through_cache(Path(config.cache), reading)
    training, heldout = store.split(config.heldout_percent)
    report.heldout = len(heldout)
    return Prepared(store, report, training, heldout)


def _through_cache(directory: Path, reading: "_Reading") -> tuple[Store, Report]:
    key = reading.key()
    if (found := open_store(directory, key)) is not None:
        logger.info("tokenised samples are taken from %s", directory)
        return found
    report = Report()
    with writing_store(directory, key, reading.files, report) as writer:
        reading.run(writer, report)
    made = open_store(directory, key)
    assert made is not None, directory
    return made


def _silent(done: int, total: int) -> None:
    pass


class _Reading:
    """One pass over all data sets."""

    def __init__(
        self, config: FinetuneConfig, sources: list[Source], tokenizer: Tokenizer, max_tokens: int, progress: Progress
    ) -> None:
        self._config, self._sources, self._tokenizer = config, sources, tokenizer
        self._max_tokens, self._progress = max_tokens, progress
        self._paths = [file for source in sources for file in source.files]
        self.files = [str(path) for path in self._paths]

    def key(self) -> str:
        """Identify what the samples are made from: the bytes of all files, the settings and the vocabulary."""
        settings = {name: getattr(self._config, name) for name in _KEY_FIELDS}
        formats = [repr(dataclasses.astuple(source.format)) + str(source.max_records) for source in self._sources]
        told = json.dumps([settings, formats, self.files, self._max_tokens])
        digest = hashlib.blake2b(told.encode(), digest_size=16)
        digest.update(self._tokenizer.serialized.encode())
        for path in self._paths:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
        return digest.hexdigest()

    def run(self, writer: StoreWriter, report: Report | None = None) -> Report:
        """Read everything into `writer`; return (or fill) the report of it."""
        report = Report() if report is None else report
        work = Work(self._tokenizer, self._config, [s.format for s in self._sources], self._max_tokens)
        total = sum(path.stat().st_size for path in self._paths)
        for chunk, outcomes in work.through(self._chunks(), self._config.workers):
            for record, outcome in zip(chunk.records, outcomes, strict=True):
                self._take(outcome, chunk.file, record.place, writer, report)
            self._progress(min(chunk.bytes_before + chunk.records[-1].end_bytes, total), total)
        if not report.read:
            raise DataError(f"{', '.join(self.files)}: no record in it")
        if not report.kept:
            raise DataError(
                f"none of the {report.read:,} records in {', '.join(self.files)} can be learnt from; "
                f"the first: {report.skipped[0]}"
            )
        return report

    def _take(self, outcome: Taken | Left, file: int, place: int, writer: StoreWriter, report: Report) -> None:
        report.read += 1
        if isinstance(outcome, Left):
            report.skip(f"{self.files[file]}:{place}", outcome.reason, outcome.detail)
            return
        report.kept += 1
        report.tokens += len(outcome.tokens)
        report.learnt_tokens += int(outcome.learnt.sum())
        report.longest_tokens = max(report.longest_tokens, len(outcome.tokens))
        report.notes.update(outcome.notes)
        report.ignored_keys.update(outcome.ignored_keys)
        writer.add(outcome.tokens, outcome.learnt, file, place)

    def _chunks(self) -> Iterator[Chunk]:
        file, bytes_before = 0, 0
        for number, source in enumerate(self._sources):
            left = source.max_records or None
            for path in source.files:
                records = itertools.islice(read_records(path), left)
                for batch in iter(lambda: tuple(itertools.islice(records, _RECORDS_PER_CHUNK)), ()):  # noqa: B023
                    yield Chunk(number, file, bytes_before, batch)
                    left = None if left is None else left - len(batch)
                file, bytes_before = file + 1, bytes_before + path.stat().st_size
