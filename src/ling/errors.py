"""Errors that a person can mend. Each becomes one clear line on the terminal or a 4xx from the server.

Our own mistakes are `assert`s or plain exceptions and keep their traceback.
"""


class LingError(Exception):
    """A mistake in what we were given: says what, where, and what to do."""


class ConfigError(LingError):
    """A configuration value, recipe or flag that cannot be meant."""


class CheckpointError(LingError):
    """A checkpoint that is incomplete, damaged, unsafe or of another model; or one that cannot be written."""


class DataError(LingError):
    """Training or evaluation data that cannot be used as given."""


class TrainingError(LingError):
    """Training that cannot go on, such as one that diverges."""


class RequestError(LingError):
    """A generation request that this model cannot serve."""


class QueueFullError(LingError):
    """A request that could be served, but not now: too many wait, or the engine is stopping."""


class BackendError(LingError):
    """A back end that was asked for by name and cannot take this call."""
