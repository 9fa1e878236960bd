"""Sharding the model: experts over the expert axis, then everything over the data-parallel ranks (FSDP2, HSDP).

    block              gathered while it runs, forward and backward; its gradients are summed and sharded right after
    experts of a block a group of their own where the expert axis is there, over the ranks that share their part
    the rest           embedding, final norm and head: one group, gathered for the whole of forward, since MTP and the
                       loss use embedding and head at the end; a tied head stays one tensor this way

Names of parameters stay what they are, so a checkpoint knows nothing of the layout it was written by.
"""

from torch import Tensor, nn
from torch.distributed import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from ling.model import CausalLM
from ling.model.moe import SparseMoe
from ling.model.mtp import MtpBlock
from ling.parallel.experts import ExpertParallel
from ling.parallel.ranks import Ranks
from ling.parallel.recompute import recompute_experts


def parallelize(model: CausalLM, ranks: Ranks, policy: MixedPrecisionPolicy | None = None) -> CausalLM:
    """Turn `model` into this rank's part of it, in place; without other ranks it stays whole.

    policy  what weights are gathered and gradients summed in; None: as they are

    All ranks call this at once, with the same weights or without memory for any.
    """
    if ranks.dense is not None and ranks.sparse is not None:
        for block in model.model.layers:
            if ranks.layout.expert > 1 and isinstance(block.mlp, SparseMoe):
                _share_out_experts(block.mlp, ranks.sparse, policy)
            _shard(block, _axes(ranks.dense, "replicate", "shard"), policy)
            if isinstance(block, MtpBlock):
                register_fsdp_forward_method(block, "predict")
        _shard(model, _axes(ranks.dense, "replicate", "shard"), policy)
    if ranks.layout.recompute == "selective":
        recompute_experts(model)
    return model


def _share_out_experts(moe: SparseMoe, mesh: DeviceMesh, policy: MixedPrecisionPolicy | None) -> None:
    experts, axis = moe.experts, mesh["expert"]
    num_experts = experts.gate_up_proj.shape[0]
    for name in ("gate_up_proj", "down_proj"):
        whole: Tensor = getattr(experts, name)
        mine = whole.detach().chunk(axis.size())[axis.get_local_rank()].clone()
        part = DTensor.from_local(mine, axis, [Shard(0)], run_check=False)
        setattr(experts, name, nn.Parameter(part, whole.requires_grad))
    _shard(experts, _axes(mesh, "replicate", "expert_shard"), policy)
    moe.mix = ExpertParallel(axis.get_group(), num_experts)


def _axes(mesh: DeviceMesh, replicate: str, shard: str) -> DeviceMesh:
    """Return the axes that FSDP sees: two only where there are copies."""
    names = mesh.mesh_dim_names
    assert names is not None
    return mesh[replicate, shard] if mesh.size(names.index(replicate)) > 1 else mesh[shard]


def _shard(module: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy | None) -> None:
    fully_shard(module, mesh=mesh, mp_policy=policy or MixedPrecisionPolicy())
    assert isinstance(module, FSDPModule)
    module.set_gradient_divide_factor(1.0)  # sums: a loss is divided by the counts of the whole step
    module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
