"""Rows of parquet files; the one place that needs `pyarrow`.

A column of structures has one set of keys for all rows: a key that a row never had comes back as null. So nulls inside
structures are taken away again; a tool call would otherwise be learnt with arguments that nobody wrote.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ling.data.records import Record
from ling.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 1024
_TEXT = re.compile(r"(large_)?string|null$|dictionary<values=(large_)?string")
"""Types of columns that hold text, if anything."""


def library(what: Path | str) -> Any:
    """Return pyarrow. Raises ConfigError that says what needs it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(f'{what}: parquet needs pyarrow; pip install "ling[parquet]"') from None
    return pyarrow


def read_rows(path: Path, column: str | None = None) -> Iterator[Record]:
    """Read a table's rows in order, some of them at a time; places count rows from 1.

    column  the only one to read; None: all
    Raises DataError, with the columns that there are, if it has no such one of text.
    """
    pyarrow = library(path)
    size, number = path.stat().st_size, 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            rows = max(table.metadata.num_rows, 1)
            if column is not None:
                _check_text(table.schema_arrow, column, path.name)
            if column is None and (names := _structures(table.schema_arrow)):
                logger.warning(
                    "%s: %s are structures, in which null and absent are the same: nulls are left out. "
                    "JSON text instead of structures keeps both apart",
                    path, ", ".join(names),
                )  # fmt: skip
            for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=column and [column]):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(number, _without_nulls(row), size * number // rows)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{path} cannot be read as parquet after row {number}: {reason}") from None


def _check_text(schema: Any, column: str, file: str) -> None:
    if column not in schema.names:
        raise DataError(f"{file} has no column {column!r}; it has {', '.join(schema.names)}: choose with --key")
    kinds = {field.name: str(field.type) for field in schema}
    if not _TEXT.match(kinds[column]):
        text = ", ".join(name for name, kind in kinds.items() if _TEXT.match(kind)) or "none"
        what = kinds[column].partition("<")[0]
        raise DataError(f"column {column!r} of {file} is {what}, not text; of text it has {text}: choose with --key")


def _structures(schema: Any) -> list[str]:
    """Return the paths of fields that hold what a tool takes or is given, as structures and not as text."""
    found, waiting = [], [(field.name, field.type) for field in schema]
    while waiting:
        path, kind = waiting.pop(0)
        if str(kind).startswith("struct"):
            if path.rpartition(".")[2] in ("arguments", "parameters"):
                found.append(path)
            else:
                fields = (kind.field(number) for number in range(kind.num_fields))
                waiting += [(f"{path}.{field.name}", field.type) for field in fields]
        elif "list<" in str(kind).partition("(")[0]:
            waiting.append((path, kind.value_type))
    return found


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
