"""Loading a prepared checkpoint: parameters are views of its files' pages, after the checks of a strict load."""

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ling.checkpoint.finite import check_finite, check_scales
from ling.checkpoint.names import may_be_ignored
from ling.checkpoint.packing import Weights, exact_dtype, fit_routers, formats_by_kind, formats_told
from ling.checkpoint.pages import PageMode, open_pages, view
from ling.checkpoint.prepared import ALIGNMENT, stored_model, stored_weights
from ling.checkpoint.source import StoredTensor, TensorSource, quoted
from ling.checkpoint.writer import safetensors_name
from ling.config import ModelConfig
from ling.errors import CheckpointError, ConfigError
from ling.model import CausalLM
from ling.model.packed import SCALES_SUFFIX

logger = logging.getLogger(__name__)


def check_options(
    config_json: Mapping[str, Any], directory: Path, *, dtype: torch.dtype | None, device: torch.device | str,
    fp8: str, weights: Weights | None,
) -> Weights:  # fmt: skip
    """Return the formats of a prepared checkpoint. Raises ConfigError if something else is asked for than it holds."""
    stored = stored_weights(config_json, str(directory / "config.json"))
    holds = f"{directory} holds {formats_told(stored)} weights"
    if weights is not None and formats_by_kind(weights) != formats_by_kind(stored):
        raise ConfigError(f"{holds} already, not {formats_told(weights)}; name no format")
    if fp8 == "keep":
        raise ConfigError(f"{holds} and no FP8 codes; name no format")
    if torch.device(device).type != "cpu":
        raise ConfigError(f"{holds}, which are for CPUs, not for {device}")
    if dtype not in (None, torch.float32):
        raise ConfigError(f"{holds}, which are computed with in float32; {str(dtype)[6:]} is not for them")
    return stored


def load_prepared(directory: Path, config: ModelConfig, weights: Weights, pages: PageMode) -> CausalLM:
    """Load a prepared checkpoint of `config` and `weights`; layers that `config` has left out are passed over.

    Raises CheckpointError that names the tensor and the file: missing, unexpected, misshapen, non-finite.
    """
    start = time.perf_counter()
    source = TensorSource(directory)
    model = stored_model(config, weights, {key: tensor.dtype for key, tensor in source.tensors.items()})
    places: dict[str, Tensor] = model.state_dict()
    _check_keys(source, places, config)
    state: dict[str, Tensor] = {}
    copied = 0
    for file in dict.fromkeys(stored.file for stored in source.tensors.values()):
        begins, memory = _begins(file), open_pages(file, pages)
        for key, stored in source.tensors.items():
            if stored.file != file or key not in places:
                continue
            begin, place = begins[key], places[key]
            state[key] = _checked(key, view(memory, begin, place.dtype, place.shape, ALIGNMENT), file)
            copied += stored.nbytes if begin % ALIGNMENT else 0
    model.load_state_dict(state, strict=True, assign=True)
    fit_routers(model, lambda key: exact_dtype(state[key]))  # float32 ones may hold no more than bfloat16
    _announce(weights, state, pages, copied, time.perf_counter() - start)
    return model.requires_grad_(False)


def _check_keys(source: TensorSource, places: Mapping[str, Tensor], config: ModelConfig) -> None:
    if missing := [key for key in places if key not in source.tensors]:
        raise CheckpointError(f"{source.directory} lacks {_list(missing)}; prepare it again with ling convert")
    left = [key for key in source.tensors if key not in places]
    if unexpected := [key for key in left if may_be_ignored(key, config) is None]:
        raise CheckpointError(f"{source.directory} holds {_list(unexpected)}, which this model has no place for")
    if left:
        logger.warning("%s: left out %d tensors (%s)", source.directory, len(left), may_be_ignored(left[0], config))
    for key, place in places.items():
        _check_header(key, place, source.tensors[key])


def _check_header(key: str, place: Tensor, stored: StoredTensor) -> None:
    expected = (safetensors_name(place.dtype), tuple(place.shape))
    if (stored.dtype, stored.shape) != expected:
        raise CheckpointError(
            f"tensor {key} is {stored.dtype} {stored.shape} in {stored.file.name}, config.json makes it "
            f"{expected[0]} {expected[1]}; prepare the checkpoint again with ling convert"
        )


def _checked(key: str, tensor: Tensor, file: Path) -> Tensor:
    if tensor.dtype == torch.float16:
        check_scales(tensor, f"tensor {key} in {file.name}")
    elif tensor.dtype != torch.uint8:  # every code is a value
        check_finite(tensor, f"tensor {key} in {file.name}")
    return tensor


def _begins(file: Path) -> dict[str, int]:
    """Return where each tensor begins in a file that the safetensors library has found to be whole."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    return {key: 8 + length + told["data_offsets"][0] for key, told in header.items() if key != "__metadata__"}


def _announce(weights: Weights, state: Mapping[str, Tensor], pages: PageMode, copied: int, seconds: float) -> None:
    held = sum(tensor.nbytes for tensor in state.values())
    packed = sum(t.nbytes for key, t in state.items() if key.endswith(SCALES_SUFFIX) or t.dtype == torch.uint8)
    logger.info(
        "prepared %s weights: %.2f GiB %s (%.2f GiB packed) in %.1f s%s",
        formats_told(weights), held / 2**30, pages, packed / 2**30, seconds,
        f"; {math.ceil(copied / 2**20)} MiB lie askew and were copied" if copied else "",
    )  # fmt: skip


def _list(keys: list[str]) -> str:
    return quoted(keys[0]) if len(keys) == 1 else f"{quoted(keys[0])} and {len(keys) - 1} more tensors"
