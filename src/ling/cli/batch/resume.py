"""What of an input is answered already."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ling.cli.batch.lines import Line
from ling.errors import DataError


def count_lines(lines: Iterable[Line], answered: Mapping[int, str], source: Path, output: Path) -> int:
    """Return how many lines the input has. Raises DataError if it has none, or answers belong to something else."""
    count = matched = 0
    for line in lines:
        count += 1
        if (found := answered.get(line.index)) is not None:
            matched += 1
            if found != line.fingerprint:
                raise DataError(
                    f"{output} answers line {line.record.place} of {source} as it was, or under other options or "
                    "another model; go on with those, choose another --output, or --restart to lose its answers"
                )
    if not count:
        raise DataError(f"{source} has no lines to answer")
    if matched < len(answered):
        raise DataError(
            f"{output} answers line {max(answered) + 1} and {source} has only {count}; give the input it belongs to, "
            "choose another --output, or --restart to lose its answers"
        )
    return count


def unanswered(lines: Iterable[Line], answered: Mapping[int, str]) -> Iterator[Line]:
    return (line for line in lines if line.index not in answered)
