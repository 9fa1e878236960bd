"""The one place that decides which layouts a simulation can build.

Today's code shards over data-parallel ranks with FSDP2. Whatever shards the model in a real run belongs here in its
stead, so that both are the same.
"""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from ling.errors import ConfigError
from ling.model import CausalLM
from ling.model.mtp import MtpBlock
from ling.scaling.layout import Layout
from ling.scaling.precision import Precision


def why_not(layout: Layout) -> str | None:
    """Return None, or what of `layout` cannot be built yet."""
    for name, size in layout.axes():
        if size > 1 and not name.startswith("data_parallel"):
            return f"parallel.{name} {size}: only data-parallel layouts so far"
    return "recompute selective: only none and full so far" if layout.recompute == "selective" else None


def shard(model: CausalLM, layout: Layout, precision: Precision) -> None:
    """Shard `model` in place over the process group at hand: each block on its own, the rest with the root."""
    if (reason := why_not(layout)) is not None:
        raise ConfigError(f"cannot simulate {reason}; leave out --simulate for a prediction")
    if layout.gpus == 1 and precision.parameter == precision.compute_bytes:
        return
    if layout.data_parallel_replicate > 1:
        sizes = (layout.data_parallel_replicate, layout.data_parallel_shard)
        mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh("cpu", (layout.data_parallel_shard,), mesh_dim_names=("shard",))
    policy = MixedPrecisionPolicy(param_dtype=getattr(torch, precision.compute), reduce_dtype=torch.float32)
    for block in model.model.layers:
        # An MTP block is entered through `predict`, around its own call: its halves are gathered each on its own.
        for unit in (block.attention, block.mlp) if isinstance(block, MtpBlock) else (block,):
            fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
