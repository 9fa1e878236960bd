"""Sharding the model: experts over the expert axis, then everything over the data-parallel ranks (FSDP2, HSDP).

    block              gathered while it runs, forward and backward; its gradients are summed and sharded right after
    experts of a block a group of their own where the expert axis is there, over the ranks that share their part
    the rest           embedding, final norm and head: one group, gathered for the whole of forward, since MTP and the
                       loss use embedding and head at the end; a tied head stays one tensor this way

Names of parameters stay what they are, so a checkpoint knows nothing of the layout it was written by.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed import DeviceMesh, ProcessGroup
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from ling.config.model import DType
from ling.model import CausalLM
from ling.model.block import Block
from ling.model.moe import SparseMoe
from ling.model.mtp import MtpBlock
from ling.ops.moe import MixExperts
from ling.parallel.experts import ExpertParallel
from ling.parallel.pipeline import Elsewhere, cut, score_on_last
from ling.parallel.ranks import Ranks
from ling.parallel.recompute import recompute_experts
from ling.parallel.tensor import split_block
from ling.parallel.vocabulary import split_vocabulary


def parallelize(
    model: CausalLM,
    ranks: Ranks,
    policy: MixedPrecisionPolicy | None = None,
    exchange: Callable[[ProcessGroup, int], MixExperts] = ExpertParallel,
) -> CausalLM:
    """Turn `model` into this rank's part of it, in place; without other ranks it stays whole.

    policy    what weights are gathered and gradients summed in; None: as they are
    exchange  brings tokens to the experts that the ranks of a group share out, so many in all

    All ranks call this at once, with the same weights or without memory for any.
    """
    model.computes_in = None if policy is None else policy.param_dtype
    if ranks.stage.count > 1:
        cut(model, ranks.stage)
    if ranks.dense is not None and ranks.sparse is not None:
        for block in model.model.layers:
            if isinstance(block, Elsewhere):
                continue
            if ranks.split is not None and ranks.token_runs is not None:
                assert isinstance(block, Block), type(block)
                pieces = split_block(block, ranks.split["tensor"], ranks.token_runs)
                _shard_pieces(pieces, ranks.split, policy)
            if policy is not None and isinstance(block.mlp, SparseMoe):  # routers are never rounded
                exact = dataclasses.replace(policy, param_dtype=None, cast_forward_inputs=False)
                _shard(block.mlp.gate, _axes(ranks.dense, "replicate", "shard"), exact)
            if ranks.layout.expert > 1 and isinstance(block.mlp, SparseMoe):
                _share_out_experts(block.mlp, ranks.sparse, policy, exchange)
            _shard(block, _axes(ranks.dense, "replicate", "shard"), policy)
            if isinstance(block, MtpBlock):
                register_fsdp_forward_method(block, "predict")
        if ranks.split is not None and ranks.token_runs is not None:
            # What is gathered for the whole of forward is then the vocabulary alone.
            _shard(model.model.norm, _axes(ranks.dense, "replicate", "shard"), policy)
            split_vocabulary(model, ranks.split["tensor"], ranks.token_runs)
            _shard_pieces(model, ranks.split, policy)
        else:
            _shard(model, _axes(ranks.dense, "replicate", "shard"), policy)
    if ranks.stage.count > 1:
        score_on_last(model, ranks.stage)
    if ranks.layout.recompute == "selective":
        recompute_experts(model)
    return model


def policy_of(precision: DType) -> MixedPrecisionPolicy | None:
    """Return how weights are gathered to be computed with in `precision`; gradients are added up in float32.

    So they are where weights are kept in bfloat16, which are then gathered as they are: each rank's gradient has been
    rounded by then, and a sum in bfloat16 would be rounded again at every rank that it passes, the more of them the
    worse. It costs twice the bytes on the wire, and no memory that stays: the sum is rounded to bfloat16 once.
    """
    if precision == "float32":
        return None
    return MixedPrecisionPolicy(param_dtype=getattr(torch, precision), reduce_dtype=torch.float32)


def _share_out_experts(
    moe: SparseMoe,
    mesh: DeviceMesh,
    policy: MixedPrecisionPolicy | None,
    exchange: Callable[[ProcessGroup, int], MixExperts],
) -> None:
    experts, axis = moe.experts, mesh["expert"]
    num_experts = experts.gate_up_proj.shape[0]
    for name in ("gate_up_proj", "down_proj"):
        whole: Tensor = getattr(experts, name)
        mine = whole.detach().chunk(axis.size())[axis.get_local_rank()].clone()
        part = DTensor.from_local(mine, axis, [Shard(0)], run_check=False)
        setattr(experts, name, nn.Parameter(part, whole.requires_grad))
    _shard(experts, _axes(mesh, "replicate", "expert_shard"), policy)
    moe.mix = exchange(axis.get_group(), num_experts)


def _shard_pieces(modules: nn.Module | list[nn.Module], mesh: DeviceMesh, policy: MixedPrecisionPolicy | None) -> None:
    """Shard pieces of matrices along the other dimension than they were cut along, so that each stays one block."""

    def place(parameter: nn.Parameter) -> Shard:
        assert isinstance(parameter, DTensor)
        return Shard(1) if parameter.dim() == 2 and parameter.placements[0].is_shard(0) else Shard(0)

    _shard(modules, _axes(mesh, "replicate", "shard"), policy, place)


def _axes(mesh: DeviceMesh, replicate: str, shard: str) -> DeviceMesh:
    """Return the axes that FSDP sees: two only where there are copies."""
    names = mesh.mesh_dim_names
    assert names is not None
    return mesh[replicate, shard] if mesh.size(names.index(replicate)) > 1 else mesh[shard]


def _shard(
    modules: nn.Module | list[nn.Module],
    mesh: DeviceMesh,
    policy: MixedPrecisionPolicy | None,
    place: Callable[[nn.Parameter], Shard] | None = None,
) -> None:
    fully_shard(modules, mesh=mesh, mp_policy=policy or MixedPrecisionPolicy(), shard_placement_fn=place)
    module = modules[0] if isinstance(modules, list) else modules
    assert isinstance(module, FSDPModule)
    module.set_gradient_divide_factor(1.0)  # sums: a loss is divided by the counts of the whole step
    module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
