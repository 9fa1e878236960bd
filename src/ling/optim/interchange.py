"""Going on from another optimizer's state: moments kept in other bits, masters that one side has and the other lacks.

What is stored in the form that is wanted is read as it is, to the bit. Everything else is decoded, and rounded to
nearest where it becomes codes. So a run saved with small states goes on with plain AdamW, and the other way round.
"""

import logging
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ling.log import log_once
from ling.model import CausalLM
from ling.ops.rounding import NEAREST
from ling.optim.build import state_tensors
from ling.optim.moments import SCALE, format_of, kind_of, num_scales
from ling.optim.muon_adamw import MuonAdamW
from ling.optim.sharding import local

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
        scale = source.read(name + SCALE, (num_scales(target.numel()),)) if name + SCALE in source.tensors else None
        codes = source.read(name, tuple(target.shape)).view(-1)
        values = format_of(codes.dtype, kind).decode(codes, scale).to(target.device)
        codes, scale = format_of(target.dtype, kind).encode(values, NEAREST)
        target.view(-1).copy_(codes)
        if scale is not None:
            wanted[name + SCALE].copy_(scale)
    for name in source.tensors:  # a master says more than the weight that was rounded from it
        if name.startswith("optim/") and name.endswith("/" + _MASTER) and name not in wanted:
            parameter = local(_parameter(model, name).detach())
            parameter.copy_(source.read(name, tuple(parameter.shape)))


def _foreign(wanted: Mapping[str, Tensor], source: Source) -> list[str]:
    """Return the names of moments and masters that are there, or derivable, but not as they are wanted."""
    found = []
    for name, tensor in wanted.items():
        key = name.rpartition("/")[2]
        is_absent = name not in source.tensors
        if (key == _MASTER and is_absent) or (key in _MOMENTS and not is_absent and source.dtype(name) != tensor.dtype):
            found.append(name)
    return found


def _parameter(model: CausalLM, name: str) -> Tensor:
    """Return the parameter that a name of the optimizer's state, `optim/PARAMETER/KEY`, belongs to."""
    return model.get_parameter(name.removeprefix("optim/").rpartition("/")[0])
