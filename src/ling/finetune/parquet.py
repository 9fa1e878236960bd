"""Rows of parquet files; the one place that needs `pyarrow`."""

from collections.abc import Iterator
from pathlib import Path

from ling.errors import ConfigError, DataError
from ling.finetune.records import Record

_ROWS_AT_ONCE = 1024


def read_rows(path: Path) -> Iterator[Record]:
    """Read a table's rows in order, some of them at a time; places count rows from 1."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(f'{path}: parquet needs pyarrow; pip install "ling[parquet]"') from None

    size, number = path.stat().st_size, 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            rows = max(table.metadata.num_rows, 1)
            for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(number, row, size * number // rows)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{path} cannot be read as parquet after row {number}: {reason}") from None
