"""What a prepared checkpoint is: weights of 8 or 4 bits, stored as they lie in memory (docs/internals/packed.md).

Its tensors are those of the packed model, under the names of its parameters: codes, and scales behind `_scales`;
routed experts stacked. Norms and biases are float32, routers bfloat16 where that loses nothing, the embedding as
published. So loading moves nothing, and what is loaded is what quantising at load gives, to the bit.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ling.checkpoint.packing import KINDS, Weights, fit_routers, formats_by_kind, pack
from ling.config import ModelConfig, write_published
from ling.errors import CheckpointError, ConfigError
from ling.model import CausalLM
from ling.ops.packed import GROUP, TILE

METHOD, VERSION = "ling_packed", 1
ALIGNMENT = 64
"""Bytes at whose multiples tensors begin, if none before them in the file is odd-sized: a cache line, so that a mapped
file serves vector instructions."""


def packed_model(config: ModelConfig, weights: Weights, dtype: torch.dtype | None = None) -> CausalLM:
    """Return a model without memory whose state is what a prepared checkpoint of `config` holds."""
    with torch.device("meta"):
        model = CausalLM(config).to(dtype or getattr(torch, config.torch_dtype))
        pack(model, weights)
    return model


def stored_model(config: ModelConfig, weights: Weights, dtypes: Mapping[str, str]) -> CausalLM:
    """Return a `packed_model` with each router in bfloat16 or float32, whichever its tensor is stored in.

    dtypes  by tensor, as safetensors calls them
    """
    model = packed_model(config, weights)
    fit_routers(model, lambda key: torch.bfloat16 if dtypes.get(key) == "BF16" else torch.float32)
    return model


def packed_config(config: ModelConfig, weights: Weights) -> dict[str, Any]:
    """Return the config.json of a prepared checkpoint."""
    described = {"quant_method": METHOD, "version": VERSION, "group_size": GROUP, "tile_rows": TILE}
    return write_published(config) | {"quantization_config": described | {"formats": formats_by_kind(weights)}}


def is_packed(config_json: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a prepared checkpoint."""
    declared = config_json.get("quantization_config")
    return isinstance(declared, Mapping) and declared.get("quant_method") == METHOD


def stored_weights(config_json: Mapping[str, Any], where: str) -> Weights:
    """Return the formats that a prepared checkpoint declares. Raises CheckpointError if this version cannot read it."""
    declared = config_json["quantization_config"]
    known = {"version": VERSION, "group_size": GROUP, "tile_rows": TILE}
    for key, value in known.items():
        if declared.get(key) != value:
            raise CheckpointError(
                f"{where}: {key} of the packed weights is not {value}, which this version of ling reads; prepare them "
                "again with ling convert"
            )
    formats = declared.get("formats")
    if not isinstance(formats, Mapping) or not formats:
        raise CheckpointError(f"{where}: quantization_config.formats must name formats of {', '.join(KINDS)}")
    try:
        return formats_by_kind({str(kind): format for kind, format in formats.items()})
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{where}: {error}") from None


def refuse_packed(config_json: Mapping[str, Any], directory: Path) -> None:
    """Raise CheckpointError if the checkpoint is a prepared one, where published tensors are wanted."""
    if is_packed(config_json):
        raise CheckpointError(
            f"{directory} holds packed weights ({METHOD}), which ling runs as they are and converts no further; take "
            "the checkpoint that it was made from"
        )


def packed_bytes(config: ModelConfig, weights: Weights) -> int:
    """Return the bytes of all tensors of a prepared checkpoint."""
    return sum(tensor.nbytes for tensor in packed_model(config, weights).state_dict().values())
