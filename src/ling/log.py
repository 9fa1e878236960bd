"""Saying a thing once. Handlers and levels belong to the command line; the library only emits records."""

import logging

_said: set[tuple[str, str]] = set()


def log_once(logger: logging.Logger, message: str, level: int = logging.INFO) -> None:
    """Emit `message` on `logger` the first time this process says it, and never again."""
    key = (logger.name, message)
    if key not in _said:
        _said.add(key)
        logger.log(level, message)
