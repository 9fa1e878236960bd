"""Starting our own engine and server."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ling.checkpoint.pages import check_page_mode
from ling.cli.serve.naming import in_flags
from ling.cli.serve.translate import engine_config, json_object, server_settings
from ling.engine.build import build, describe, device_of, dtype_of, load
from ling.engine.bundled import bundled_directory
from ling.engine.core import Engine
from ling.engine.early import check_overrides, check_sizes, packed_weights
from ling.engine.loop import EngineLoop
from ling.engine.memory import cache_gib_within
from ling.engine.threads import set_threads
from ling.errors import ConfigError
from ling.server.run import bind, run
from ling.server.sampling import SamplingDefaults
from ling.server.service import Service

_BUNDLED = "ling-bundled"

Say = Callable[[str], None]


def start(options: Any, *, name: str | None, resolve: Callable[[str | None], Path], say: Say) -> None:
    """Check everything that costs nothing, load the model, and serve until a signal."""
    settings = server_settings(options, name=_called(name))
    engine_config(options)
    dtype_of("--dtype", options.dtype)
    device_of("--device", options.device)
    packed_weights("--quantization", options.quantization)
    check_page_mode("--weight-pages", options.weight_pages)
    check_overrides("--hf-overrides", _overrides(options))
    share = options.gpu_memory_utilization
    if share is not None and not 0 < share <= 1:
        raise ConfigError(f"--gpu-memory-utilization must lie in (0, 1], got {share:g}")
    bind(settings).close()  # a port in use is said now, not after the model is loaded
    begin = time.perf_counter()
    directory = resolve(name)
    defaults = SamplingDefaults.of_model(directory)
    _check_sizes(options, directory)
    say(f"loading {name or 'the bundled model'}")
    engine = _open(options, directory, say)
    for line in describe(engine):
        say(in_flags(line))
    say(f"sampling where requests do not say: {defaults.described}")
    say(f"loaded in {time.perf_counter() - begin:.1f} s")
    if not settings.is_loopback and not settings.api_keys:
        say(f"note: whoever reaches {settings.host} may use this server; --api-key asks for a key")
    taken = bind(settings)
    loop = EngineLoop(engine).start()
    names = " or ".join((*settings.served_names, "auto"))
    try:
        run(Service(loop, settings, defaults), taken, lambda url: say(f"serving {names} at {url}/v1"))
    finally:
        loop.stop()
    say("stopped")


def _called(name: str | None) -> str:
    """Return what clients call the model: its name on a hub, or the last part of a path."""
    if name is None:
        return _BUNDLED
    return Path(name).resolve().name if Path(name).exists() else name


def _open(options: Any, directory: Path, say: Say) -> Engine:
    device = device_of("--device", options.device)
    few = 1 if directory == bundled_directory() else None  # its tensors are too small to share
    say(set_threads(options.threads if options.threads is not None else few))
    model, tokenizer = load(
        directory, dtype=dtype_of("--dtype", options.dtype), quantization=options.quantization,
        hf_overrides=_overrides(options), device=device, pages=check_page_mode("--weight-pages", options.weight_pages),
    )  # fmt: skip
    return build(model, tokenizer, engine_config(options, kv_cache_gib=_share(options, device, say)))


def _check_sizes(options: Any, directory: Path) -> None:
    """Refuse what will not fit before anything is loaded."""
    device = device_of("--device", options.device)
    if options.gpu_memory_utilization is not None and device.type == "cuda":
        return  # the cache is sized when the weights are there
    check_sizes(
        directory, engine_config(options), dtype=dtype_of("--dtype", options.dtype), quantization=options.quantization,
        hf_overrides=_overrides(options), device=device,
    )  # fmt: skip


def _overrides(options: Any) -> dict[str, Any] | None:
    return json_object("--hf-overrides", options.hf_overrides) if options.hf_overrides else None


def _share(options: Any, device: torch.device, say: Say) -> float | None:
    """Return the GiB that a share of a GPU's memory leaves for the cache, the weights being there already."""
    share = options.gpu_memory_utilization
    if share is None:
        return None
    if device.type != "cuda":
        say("note: --gpu-memory-utilization has no effect on a CPU; --kv-cache-gib sizes the cache")
        return None
    if options.kv_cache_gib is not None:
        raise ConfigError("--gpu-memory-utilization and --kv-cache-gib both size the cache; give one")
    return cache_gib_within(share, device)
