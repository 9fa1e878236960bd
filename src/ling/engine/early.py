"""What a checkpoint's small files tell before its weights are read: what was asked for that can never be."""

import contextlib
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ling.checkpoint.load import read_config
from ling.checkpoint.packing import Weights, read_weights
from ling.checkpoint.prepared import is_packed, packed_bytes
from ling.checkpoint.prepared_load import check_options
from ling.checkpoint.source import read_json
from ling.config import ModelConfig
from ling.config.engine import EngineConfig
from ling.config.published import PUBLISHED_KEYS
from ling.engine.sizing import sizes_of
from ling.errors import ConfigError
from ling.scaling.parameters import count_parameters


def check_sizes(
    directory: Path | str,
    config: EngineConfig | None = None,
    *,
    dtype: torch.dtype | None = None,
    quantization: str | None = None,
    hf_overrides: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Raise ConfigError for what will not fit: the arguments of `load`, and an engine of `config` after it."""
    directory, device = Path(directory), torch.device(device)
    weights = packed_weights("quantization", quantization)
    told = read_json(directory / "config.json")
    model = read_config(directory, where_read(directory, hf_overrides))
    if quantization == "fp8" and not told.get("quantization_config"):
        raise ConfigError(
            f"quantization fp8 keeps FP8 weights as they are stored, and {directory} has none; leave it out"
        )
    if is_packed(told):
        kept = "keep" if quantization == "fp8" else "dequantize"
        weights = check_options(told, directory, dtype=dtype, device=device, fp8=kept, weights=weights)
    computed = torch.float32 if device.type == "cpu" or weights is not None else getattr(torch, model.torch_dtype)
    size = _weight_bytes(directory, model, dtype or computed, weights, coded=quantization == "fp8")
    sizes_of(model, config or EngineConfig(), dtype or computed, device, weight_bytes=size)


def _weight_bytes(
    directory: Path, model: ModelConfig, dtype: torch.dtype, weights: Weights | None, *, coded: bool
) -> int:
    """Return what the weights take in memory; coded: as they are stored."""
    if weights is not None:
        return packed_bytes(model, weights)
    if coded:
        return sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    return count_parameters(model).total_with_mtp * dtype.itemsize


def packed_weights(option: str, quantization: object) -> Weights | None:
    """Return how matrices are packed; None: they are not. Raises ConfigError for a `quantization` that is not known.

    option  what the message calls it
    """
    if quantization in (None, "fp8"):
        return None
    with contextlib.suppress(ConfigError):
        if isinstance(quantization, str):
            return read_weights(quantization)
    raise ConfigError(
        f"{option} must be fp8, int8, int4, mixed, by kind as in int4,head=int8, or left out, got {quantization}"
    )


def check_overrides(option: str, overrides: object) -> None:
    """Raise ConfigError for keys that mean nothing in a config.json."""
    if overrides is None:
        return
    if not isinstance(overrides, Mapping):
        raise ConfigError(f"{option} must map keys of config.json to values, got {overrides!r}")
    for key in overrides:
        if key not in PUBLISHED_KEYS:
            near = difflib.get_close_matches(str(key), PUBLISHED_KEYS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{option}: {key} is no key of config.json that this model reads{hint}")


def where_read(directory: Path, overrides: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Lay overrides over the section of config.json that describes the model, where it has one."""
    if not overrides or not isinstance(section := read_json(directory / "config.json").get("llm_config"), Mapping):
        return overrides
    return {"llm_config": {**section, **overrides}}
