"""The one place that decides which layouts a simulation can run; it builds them as a real run does."""

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy

from ling.errors import ConfigError
from ling.model import CausalLM
from ling.parallel.ranks import Ranks
from ling.parallel.shard import parallelize
from ling.scaling.layout import Layout
from ling.scaling.precision import Precision


def why_not(layout: Layout) -> str | None:
    """Return None, or what of `layout` cannot be simulated: how many rows an exchange moves depends on values."""
    for name, size in layout.axes():
        if size > 1 and not name.startswith("data_parallel"):
            return f"parallel.{name} {size}: only data-parallel layouts so far"
    return "recompute selective: only none and full so far" if layout.recompute == "selective" else None


def shard(model: CausalLM, layout: Layout, precision: Precision) -> None:
    """Shard `model` in place over the process group at hand."""
    if (reason := why_not(layout)) is not None:
        raise ConfigError(f"cannot simulate {reason}; leave out --simulate for a prediction")
    if layout.gpus == 1 and precision.parameter == precision.compute_bytes:
        return
    policy = MixedPrecisionPolicy(param_dtype=getattr(torch, precision.compute), reduce_dtype=torch.float32)
    parallelize(model, Ranks(layout), policy)
