"""How an op chooses its back end.

Each public op is a function whose body is the reference. Twins with the same signature live in modules that define

    forward(...)   the same result, faster on some device
    why_not(...)   None, or the reason why this call cannot take this path
    rather_not(...)  where it is defined: None, or the reason why another path is faster although this one could

The first twin that can run, and would, is taken, otherwise the reference; the choice is logged once. What a twin would
rather not counts only while nothing is forced: it may depend on the number of rows.
`use_backend("reference")` forces a name: a twin that cannot take the call then refuses aloud. Ops without a twin of
that name keep their usual choice, so one name can be forced over a whole model. `on_backend` asks for a name in one
call, as a layer does whose configuration has one. Never chosen, only asked for, are `invariant`, whose results do not
depend on what else is in the batch, which costs speed, and the libraries `scaled_mm` and `deep_gemm`.

Twins are imported where the op is defined, never inside a call, so that compiled graphs trace through the choice.
The forced name is a plain global for the same reason: it belongs to the process, not to a thread.
"""

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import ModuleType
from typing import Any, ParamSpec, TypeVar, cast

import torch

from ling.errors import BackendError
from ling.log import log_once

logger = logging.getLogger(__name__)

_ONLY_FORCED = ("invariant", "scaled_mm", "deep_gemm")
BACKENDS = ("reference", "torch", "triton", "cpu", *_ONLY_FORCED)

P = ParamSpec("P")
T = TypeVar("T")

_forced: str | None = None


def forced_backend() -> str | None:
    """Return the back end that `use_backend` forces now, or None."""
    return _forced


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force every op that has a back end called `name` to use it; BackendError from the op that cannot."""
    global _forced
    if name not in BACKENDS:
        raise BackendError(f"unknown back end {name}; known: {', '.join(BACKENDS)}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def on_backend(name: str, function: Callable[P, T]) -> Callable[P, T]:
    """Return an op as it runs on the back end `name`, which refuses aloud what it cannot take.

    It is the op as it was where that has no back end of the name, such as auto; and a back end of it that `use_backend`
    forces comes first.
    """
    choosing: Any = function
    if name not in choosing.backends:
        return function

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if _forced in choosing.backends:
            return function(*args, **kwargs)
        return cast(T, choosing.run_on(name, args, kwargs))

    return run


def op(**twins: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a reference function choose among `twins` (back end name -> module), first named first tried."""
    return _op(twins, coarse=False)


def coarse_op(**twins: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a composition of finer ops choose among `twins`.

    Where a back end is forced that it lacks, the composition runs, so that its parts obey.
    """
    return _op(twins, coarse=True)


def _op(twins: dict[str, str], *, coarse: bool) -> Callable[[Callable[P, T]], Callable[P, T]]:

    def decorate(reference: Callable[P, T]) -> Callable[P, T]:
        name = reference.__name__
        modules: dict[str, ModuleType] = {}
        missing: dict[str, str] = {}
        for backend, path in twins.items():
            try:
                modules[backend] = importlib.import_module(path)
            except ModuleNotFoundError as error:
                if (error.name or "").startswith("ling"):
                    raise
                missing[backend] = f"{error.name} is not installed"

        chosen_unasked = {backend: module for backend, module in modules.items() if backend not in _ONLY_FORCED}

        @wraps(reference)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            if _forced is not None and (_forced == "reference" or _forced in twins):
                return run_on(_forced, args, kwargs)
            if _forced is not None and coarse:
                return reference(*args, **kwargs)
            for backend, module in chosen_unasked.items():
                reason = module.why_not(*args, **kwargs)
                # Asked now: when the op was made, its module may have been half there.
                if reason is None and _forced is None and hasattr(module, "rather_not"):
                    reason = module.rather_not(*args, **kwargs)
                if reason is None:
                    return cast(T, module.forward(*args, **kwargs))
                _say(f"{name}: not {backend}: {reason}")
            return reference(*args, **kwargs)

        def run_on(backend: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
            if backend == "reference":
                return reference(*args, **kwargs)
            reason = missing.get(backend) or modules[backend].why_not(*args, **kwargs)
            if reason is not None:
                raise BackendError(f"{name} cannot use back end {backend}: {reason}")
            return cast(T, modules[backend].forward(*args, **kwargs))

        for backend, reason in missing.items():
            _say(f"{name}: back end {backend} is off: {reason}")
        call.backends = ("reference", *twins)  # type: ignore[attr-defined]
        call.run_on = run_on  # type: ignore[attr-defined]
        return call

    return decorate


def _say(message: str) -> None:
    """Log a choice once; not while a graph is compiled, which a record would cut in two."""
    if not torch.compiler.is_compiling():
        log_once(logger, message, logging.DEBUG)
