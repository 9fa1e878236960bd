"""A short training on any layout, and the same in one process: what the parity tests compare.

One model, eight documents or packs a step. The one process takes them as a single microbatch; ranks take theirs in as
many microbatches as they are told.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ling.cli.train.data import heldout_loss
from ling.config.model import DType
from ling.config.parallel import ParallelConfig
from ling.config.recipe import Recipe
from ling.config.training import OptimConfig, TrainConfig
from ling.distributed.parts import local, shared_as
from ling.engine.scoring import negative_log_likelihoods as score
from ling.model import CausalLM
from ling.optim.build import build_optimizer
from ling.parallel.ranks import Ranks
from ling.parallel.shard import parallelize, policy_of
from ling.scaling.layout import plan_layout
from ling.testing.models import tiny_config, tiny_model
from ling.train.batch import TrainBatch, build_batch
from ling.train.step import train_step

STEPS = 5
UNITS = 8
"""Sequences of a step."""

LAYOUTS: dict[str, tuple[int, dict[str, int]]] = {
    "fsdp2": (2, {}),
    "hsdp2x2": (4, {"data_parallel_replicate": 2}),
    "ep2": (2, {"expert": 2}),
    "ep4": (4, {"expert": 4}),
    "hsdp2xep2": (4, {"data_parallel_replicate": 2, "expert": 2}),
    "fsdp2xep2": (4, {"expert": 2}),
    "cp2": (2, {"context": 2}),
    "cp4": (4, {"context": 4}),
    "cp2xep2": (4, {"context": 2, "expert": 2}),
    "tp2": (2, {"tensor": 2}),
    "fsdp2xtp2": (4, {"tensor": 2}),
    "hsdp2xtp2": (4, {"tensor": 2, "data_parallel_replicate": 2}),
    "cp2xtp2": (4, {"tensor": 2, "context": 2}),
    "tp2xep4": (4, {"tensor": 2, "expert": 4}),
    "pp2": (2, {"pipeline": 2}),
    "pp2xfsdp2": (4, {"pipeline": 2}),
    "pp2xhsdp2": (4, {"pipeline": 2, "data_parallel_replicate": 2}),
    "pp2xep2": (4, {"pipeline": 2, "expert": 2}),
    "pp2xcp2": (4, {"pipeline": 2, "context": 2}),
    "pp2xtp2": (4, {"pipeline": 2, "tensor": 2}),
    "hsdp2xcp2xep2": (4, {"data_parallel_replicate": 2, "context": 2, "expert": 2}),
}
"""By name: ranks, and what is set in the section `parallel`."""
OTHERS: dict[str, tuple[int, dict[str, int]]] = {"pp4": (4, {"pipeline": 4}), "one": (1, {})}
"""Not for the usual model, which has too few layers; and a single rank that is laid out as many are."""
CONTAINED = ("fsdp2", "hsdp2x2", "ep2", "hsdp2xep2", "cp2", "tp2", "hsdp2xtp2", "pp2", "pp2xfsdp2", "pp2xhsdp2")
"""Those whose parts other layouts have, on as many ranks or more."""


@dataclass(frozen=True)
class Trained:
    """What a training came to; tensors are whole."""

    losses: list[list[float]]
    """Per step: total, main, z-loss, then per MTP depth the loss and the share of right answers."""
    norms: list[float]
    counts: list[dict[int, Tensor]]
    gradients: dict[str, Tensor]
    """Of the first step, clipped."""
    weights: dict[str, Tensor]
    """In the end, expert biases included."""


def recipe_for(mtp_depth: int) -> Recipe:
    # AdamW divides a gradient by its size: with an eps of 1e-8 the rounding of one of 1e-9 would be a whole step.
    optim = OptimConfig(lr=1e-2, warmup_steps=2, eps=1e-4, clip_grad_norm=0.5, router_z_loss=1e-2)
    model = tiny_config(num_nextn_predict_layers=mtp_depth, mtp_loss_scaling_factor=0.3 if mtp_depth else 0.0)
    return Recipe(model=model, optim=optim, train=TrainConfig(steps=STEPS))


@functools.cache
def _units(step: int, packed: bool) -> list[list[list[int]]]:
    """Return the documents of each sequence of a step: one, or several of different lengths."""
    generator = torch.Generator().manual_seed(100 + step)

    def document(low: int, high: int) -> list[int]:
        n = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(2, 128, (n,), generator=generator).tolist()

    return [[document(2, 9) for _ in range(3)] if packed else [document(6, 18)] for _ in range(UNITS)]


def batches_of(step: int, packed: bool, mtp_depth: int, rank: int, ranks: int, pieces: int) -> list[TrainBatch]:
    """Return a rank's microbatches: with one rank and one piece, the whole step in one."""
    units = _units(step, packed)
    per_batch = UNITS // (ranks * pieces)
    batches = []
    for piece in range(pieces):
        first = (piece * ranks + rank) * per_batch
        documents = [d for unit in units[first : first + per_batch] for d in unit]
        # The first tokens of some documents are not learnt, so that ranks learn different numbers of slots.
        masks = [[i >= len(d) % 4 for i in range(len(d))] for d in documents]
        batches.append(build_batch(documents, masks, mtp_depth))
    return batches


def train(
    layout: str | None,
    recompute: str = "none",
    pieces: int = 1,
    packed: bool = False,
    mtp_depth: int = 1,
    changes: Mapping[str, Any] | None = None,
    frozen: Sequence[str] = (),
    precision: DType = "float32",
) -> Trained:
    """Train for five steps: on the ranks of a layout, or (None) in this process alone; `changes` of the network."""
    recipe = recipe_for(mtp_depth)
    optim = replace(recipe.optim, freeze=tuple(frozen))
    recipe = replace(recipe, model=replace(recipe.model, **(changes or {})), optim=optim)
    mtp = {"num_nextn_predict_layers": mtp_depth, "mtp_loss_scaling_factor": 0.3 if mtp_depth else 0.0}
    model: CausalLM = tiny_model(**mtp, **(changes or {}))
    ranks = None
    if layout is not None:
        world_size, sizes = (LAYOUTS | OTHERS)[layout]
        parallel = ParallelConfig(recompute=recompute, **sizes)  # type: ignore[arg-type]
        ranks = Ranks(plan_layout(parallel, recipe.model, world_size, 16))
        model = parallelize(model, ranks, policy_of(precision))
    optimizer = build_optimizer(model, recipe.optim)
    gradients: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        if not gradients:
            gradients.update({n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None})

    optimizer.register_step_pre_hook(keep)
    losses, norms, counts = [], [], []
    for step in range(STEPS):
        where = (ranks.data_rank, ranks.data_size) if ranks else (0, 1)
        batches = batches_of(step, packed, mtp_depth, *where, pieces)
        result = train_step(model, optimizer, batches, recipe, step, ranks)
        found = result.losses
        numbers = [found.total, found.main, found.z_loss, *found.mtp, *found.mtp_correct_fraction]
        losses.append([float(n) for n in numbers])
        norms.append(float(result.grad_norm))
        counts.append({layer: c.clone() for layer, c in result.counts.items()})
    return Trained(losses, norms, counts, gradients, {n: whole(t) for n, t in model.state_dict().items()})


def one_measurement(layout: str | None) -> list[float]:
    """Return a model's losses of held-out documents: as training measures them, and as the engine scores them."""
    recipe, model = recipe_for(1), tiny_model(num_nextn_predict_layers=1)
    if layout is not None:
        world_size, sizes = LAYOUTS[layout]
        parallelize(model, Ranks(plan_layout(ParallelConfig(**sizes), recipe.model, world_size, 16)))
    with torch.no_grad():
        loss = heldout_loss(model, batches_of(0, True, 1, 0, 1, 2))
    return [loss, *(float(n) for nats in score(model, _units(0, True)[0]) for n in nats)]


def what_is_computed(layout: str) -> dict[str, Any]:
    """Run a sparse layer's router with bfloat16 weights around it; return what its logits were, and were made of."""
    recipe, model = recipe_for(1), tiny_model(num_nextn_predict_layers=1)
    gate = model.model.layers[2].mlp.gate.weight.detach().clone()
    world_size, sizes = (LAYOUTS | OTHERS)[layout]
    ranks = Ranks(plan_layout(ParallelConfig(**sizes), recipe.model, world_size, 16))
    parallelize(model, ranks, policy_of("bfloat16"))
    stored = {p.dtype for p in model.parameters()}
    seen: list[Tensor] = []
    model.model.layers[2].post_attention_layernorm.register_forward_hook(lambda *found: seen.append(found[2].detach()))
    (batch,) = (b.shared(ranks) for b in batches_of(0, True, 1, ranks.data_rank, ranks.data_size, 1))
    output = ranks.run(model, batch.tokens, batch.positions, batch.attention, batch.token_runs)
    logits = output.routings[2].logits
    return {
        "hidden": output.hidden.dtype, "stream": seen[0].dtype, "logits": logits.detach(),
        "exact": seen[0].float() @ gate.t(), "rounded": seen[0].float() @ gate.bfloat16().float().t(),
        "stored": stored,
    }  # fmt: skip


def whole(tensor: Tensor) -> Tensor:
    """Return a copy of all of a tensor, gathered from the ranks; codes in FP8 as the bytes that gloo knows."""
    if tensor.dtype == torch.float8_e4m3fn:
        tensor = shared_as(tensor, local(tensor).view(torch.uint8), tensor.shape)
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.detach().clone()


def train_and_keep_stages(layout: str, *arguments: Any) -> Trained | None:
    """Train; the first rank of each pipeline stage returns what its stage has."""
    trained = train(layout, *arguments)
    world_size, sizes = (LAYOUTS | OTHERS)[layout]
    return None if torch.distributed.get_rank() % (world_size // sizes.get("pipeline", 1)) else trained


def join_stages(found: Sequence[Trained | None]) -> Trained:
    """Return what the stages have together; what several of them have must be the same to the bit."""
    first, *others = (trained for trained in found if trained is not None)
    for other in others:
        assert (other.losses, other.norms) == (first.losses, first.norms)
        for mine, theirs in ((first.gradients, other.gradients), (first.weights, other.weights)):
            for name, tensor in theirs.items():
                assert torch.equal(mine.setdefault(name, tensor), tensor), name
    return first
