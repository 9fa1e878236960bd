"""Going on from another optimizer's state: moments kept in other bits, masters that one side has and the other lacks.

What is stored in the form that is wanted is read as it is, to the bit, on any layout of ranks. Everything else is
decoded, and rounded to nearest where it becomes codes: whole, a tensor at a time, of which a rank keeps its part. So a
run saved with small states goes on with plain AdamW, and the other way round.
"""

import logging
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ling.distributed.parts import local, part_of
from ling.log import log_once
from ling.model import CausalLM
from ling.ops.rounding import NEAREST
from ling.optim.build import state_tensors
from ling.optim.moments import SCALE, format_of, kind_of, num_scales
from ling.optim.muon_adamw import MuonAdamW

logger = logging.getLogger(__name__)

_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum")
_MASTER = "master"


class Source(Protocol):
    """A checkpoint with flat names."""

    @property
    def tensors(self) -> Mapping[str, Any]: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor: ...


def stored_as_wanted(model: CausalLM, optimizer: MuonAdamW, source: Source) -> dict[str, Tensor]:
    """Return the tensors of the optimizer that can be read as they are; `convert_` sees to the others."""
    wanted = state_tensors(model, optimizer)
    foreign = set(_foreign(wanted, source))
    return {name: tensor for name, tensor in wanted.items() if name.removesuffix(SCALE) not in foreign}


@torch.no_grad()
def convert_(model: CausalLM, optimizer: MuonAdamW, source: Source) -> None:
    """Read what is stored in another form, after the weights; CheckpointError where a shape is another."""
    wanted = state_tensors(model, optimizer)
    for name in _foreign(wanted, source):
        log_once(logger, "moments or masters are stored in another form than optim asks for: they are converted")
        target = local(wanted[name])
        if name.endswith(_MASTER):
            target.copy_(local(_parameter(model, name).detach()))
            continue
        kind = kind_of(name.rpartition("/")[2])
        values = part_of(_decoded(source, name, wanted[name].shape), wanted[name]).to(target.device)
        codes, scale = format_of(target.dtype, kind).encode(values.reshape(-1), NEAREST)
        target.copy_(codes.view(target.shape))
        if scale is not None:
            local(wanted[name + SCALE]).view(-1)[: len(scale)].copy_(scale)
    for owner, parameter in model.named_parameters():  # a master says more than the weight that was rounded from it
        name = f"optim/{owner}/{_MASTER}"
        if name in source.tensors and name not in wanted:
            here = parameter.detach()
            local(here).copy_(part_of(source.read(name, tuple(here.shape)), here))


def _decoded(source: Source, name: str, shape: torch.Size) -> Tensor:
    """Return the whole of a stored moment, of `shape` in float32."""
    codes = source.read(name, tuple(shape))
    form, scale = format_of(codes.dtype, kind_of(name.rpartition("/")[2])), None
    if form.has_scale:
        flat = source.read(name + SCALE).view(-1)  # a row of them, in checkpoints before ranks shared them out
        scale = flat[: num_scales(codes.numel())]
    return form.decode(codes.view(-1), scale).view(shape)


def _foreign(wanted: Mapping[str, Tensor], source: Source) -> list[str]:
    """Return the names of moments and masters that are there, or derivable, but not as they are wanted."""
    found = []
    for name in wanted:
        key = name.rpartition("/")[2]
        is_absent = name not in source.tensors
        if (key == _MASTER and is_absent) or (
            key in _MOMENTS and not is_absent and not _is_alike(name, wanted, source)
        ):
            found.append(name)
    return found


def _is_alike(name: str, wanted: Mapping[str, Tensor], source: Source) -> bool:
    """Whether a moment's codes and scales are stored as they are wanted."""
    scale = name + SCALE
    if scale in wanted and scale in source.tensors and source.tensors[scale].size != wanted[scale].shape:
        return False
    return source.dtype(name) == wanted[name].dtype


def _parameter(model: CausalLM, name: str) -> Tensor:
    """Return the parameter that a name of the optimizer's state, `optim/PARAMETER/KEY`, belongs to."""
    return model.get_parameter(name.removeprefix("optim/").rpartition("/")[0])
