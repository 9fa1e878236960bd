"""Settings as the flags that a person gives: the engine and the server know their fields' names alone."""

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager

from ling.cli.serve.flags import all_flags
from ling.config.engine import EngineConfig
from ling.errors import ConfigError
from ling.server.settings import ServerSettings

_CALLED_OTHERWISE = {
    "max_num_queued": "--max-num-queued-reqs", "request_seconds": "--request-timeout",
    "shutdown_seconds": "--shutdown-timeout", "served_names": "--served-model-name",
}  # fmt: skip


def _flags_of_fields() -> dict[str, str]:
    flags = {flag.name: flag.spellings[0].partition("/")[0] for flag in all_flags()}
    fields = [field.name for tree in (EngineConfig, ServerSettings) for field in dataclasses.fields(tree)]
    return {
        name: flags[name] for name in (*fields, "gpu_memory_utilization", "quantization") if name in flags
    } | _CALLED_OTHERWISE


_FLAGS = _flags_of_fields()
_LONG = "|".join(sorted((name for name in _FLAGS if "_" in name), key=len, reverse=True))
_FIELD = re.compile(rf"(?<![\w./-])({_LONG})(?![\w./-])|^({'|'.join(_FLAGS)})(?![\w./-])")
"""A name of one word, such as port, is a field where a message begins with it."""


def in_flags(text: str) -> str:
    """Return `text` with every field of the engine and the server called by its flag."""
    return _FIELD.sub(lambda found: _FLAGS[found[0]], text)


@contextmanager
def naming_flags() -> Iterator[None]:
    """Let refusals name flags."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(in_flags(str(error))) from None
