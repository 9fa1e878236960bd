"""`ling serve`: the OpenAI API over one model."""

import inspect
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import typer
from rich.console import Console

from ling.cli.serve.flags import NO_EFFECT, all_flags
from ling.errors import ConfigError

_MODEL_HELP = "Checkpoint directory or a hub's name; left out: the bundled model."
_HUB_VARIABLES = ("VLLM_USE_MODELSCOPE", "SGLANG_USE_MODELSCOPE")
"""The only environment variables that are read: they take names from ModelScope instead of Hugging Face."""


def serve(**given: Any) -> None:
    """Serve a model behind the OpenAI API, at http://127.0.0.1:8000 if nothing else is said.

    Flags have vLLM's names, and SGLang's. Without a model it serves the one that comes with the package.
    """
    options = SimpleNamespace(**given)
    say = Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print
    model = _one_model(options)
    from ling.cli.serve.elsewhere import serve_elsewhere, who_serves
    from ling.cli.serve.naming import naming_flags
    from ling.cli.serve.translate import check_formats

    check_formats(options)
    if (program := who_serves(options)) != "ling":
        serve_elsewhere(program, options, _resolve(model), say)
    for name, why in NO_EFFECT.items():
        if getattr(options, name):
            say(f"note: --{name.replace('_', '-')} has no effect: {why}")
    _need_extra()
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # what it warns of is what strangers send
    from ling.cli.serve.start import start

    with naming_flags():
        start(options, name=model, resolve=_resolve, say=say)


def _signature() -> inspect.Signature:
    """Return what typer reads: the model, then every flag of the table."""

    def parameter(name: str, kind: Any, option: Any, default: Any) -> inspect.Parameter:
        annotation: Any = Annotated[kind if default is not None else kind | None, option]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    model = typer.Argument(metavar="MODEL", help=_MODEL_HELP, show_default=False)
    named = typer.Option("--model", "--model-path", help="The same, as an option.", show_default=False)
    parameters = [parameter("model", str, model, None), parameter("model_path", str, named, None)]
    for flag in all_flags():
        shown = flag.default is not None and flag.kind is not bool
        metavar = "<str>" if flag.kind == list[str] else None
        option = typer.Option(*flag.spellings, help=flag.help, show_default=shown, metavar=metavar)
        parameters.append(parameter(flag.name, flag.kind, option, flag.default))
    return inspect.Signature(parameters)


serve.__signature__ = _signature()  # type: ignore[attr-defined]
serve.__annotations__ = {name: p.annotation for name, p in _signature().parameters.items()}


def _one_model(options: Any) -> str | None:
    if options.model is not None and options.model_path is not None:
        raise ConfigError(f"two models are named, {options.model} and {options.model_path}; give one")
    model: str | None = options.model if options.model is not None else options.model_path
    if model == "":
        raise ConfigError("the model's name is empty; give a directory or a hub's name, or leave it out")
    return model


def _resolve(model: str | None) -> Path:
    from ling.checkpoint.hub import download, resolve_checkpoint
    from ling.checkpoint.hub.names import may_be_name
    from ling.engine.bundled import bundled_directory

    if model is None:
        return bundled_directory()
    chosen = [name for name in _HUB_VARIABLES if os.environ.get(name, "").lower() in ("1", "true")]
    if chosen and not Path(model).exists() and may_be_name(model):
        return download(model, hub="modelscope")[0]
    found = resolve_checkpoint(model)
    if not found.is_dir():
        raise ConfigError(f"there is no directory {model}; give a checkpoint's, or a hub's name such as owner/name")
    return found


def _need_extra() -> None:
    try:
        import llguidance  # noqa: F401
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"ling serve needs {error.name}: pip install 'ling[serve]'") from None
