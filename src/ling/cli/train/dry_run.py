"""What a run would do: what the recipe changes, how large it is, what a step costs, what each rank does."""

import math
import os
from pathlib import Path

from ling.config.parallel import AXES
from ling.config.recipe import Recipe, recipe_diff
from ling.scaling.activations import Workload
from ling.scaling.flops import count_flops
from ling.scaling.layout import Layout, plan_layout, stage_layers
from ling.scaling.memory import plan_memory
from ling.scaling.parameters import count_parameters
from ling.scaling.precision import PRECISIONS, with_measuring, with_muon, with_release, with_row_multiple, with_states

_MOST_RANKS = 16
"""Listed one by one."""


def describe(recipe: Recipe, directory: Path) -> str:
    """Return a few lines. Ranks are those of torchrun; without it, as many as the sizes in `parallel` make."""
    counts, train = count_parameters(recipe.model), recipe.train
    given = math.prod(getattr(recipe.parallel, axis) or 1 for axis in AXES)
    ranks = int(os.environ.get("WORLD_SIZE", "0")) or given
    layout = plan_layout(recipe.parallel, recipe.model, ranks, train.sequence_length)
    work, tokens = _workload(recipe, layout)
    flops = count_flops(recipe.model, work.sequence_length)
    optim = recipe.optim
    held = with_states(PRECISIONS[train.precision], optim.weights, optim.moments, master=optim.master_weights)
    if recipe.optim.method == "muon":
        held = with_muon(held, recipe.optim.muon.chunk_mib)
    if recipe.optim.in_backward:
        held = with_release(held)
    held = with_row_multiple(held, train.fp8.row_multiple)
    if train.precision == "fp8" and train.fp8.measure_every:
        held = with_measuring(held)
    memory = plan_memory(recipe.model, layout, work, held)
    changes = [f"  {key}: {after}  (default {before})" for key, (before, after) in recipe_diff(recipe).items()]
    begin = "new weights" if recipe.run.start_from is None else f"the weights of {recipe.run.start_from}"
    return "\n".join(
        [
            f"directory:   {directory}",
            f"begins with: {begin}",
            f"parameters:  {counts.total_with_mtp:,}, of them {counts.activated:,} at work per token without MTP",
            f"steps:       {train.steps:,} of at most {tokens:,} tokens",
            f"FLOPs:       {flops.training:.3g} per token, {flops.training * tokens * train.steps:.3g} in all",
            f"memory:      {_gb(memory.peak.total)} per rank at the fullest moment ({memory.moment}), "
            f"{_gb(memory.resting.total)} between steps; predicted, {train.precision}",
            f"layout:      {layout}" + (f", recompute {layout.recompute}" if layout.recompute != "none" else ""),
            *_ranks(recipe, layout),
            "differs from the defaults:",
            *changes,
        ]
    )


def _workload(recipe: Recipe, layout: Layout) -> tuple[Workload, int]:
    """Return what a rank runs at once, and the tokens of a step."""
    train = recipe.train
    z_loss = recipe.optim.router_z_loss > 0
    if recipe.finetune.data or recipe.data.files:
        microbatches = max(1, train.global_batch_size // (train.micro_batch_size * layout.data_parallel))
        tokens = train.global_batch_size * train.sequence_length
        return Workload(train.sequence_length, train.micro_batch_size, microbatches, z_loss=z_loss), tokens
    length = recipe.data.max_document_tokens
    documents = max(1, train.tokens_per_step // layout.data_parallel // length)
    return Workload(length, documents, z_loss=z_loss), train.tokens_per_step


def _ranks(recipe: Recipe, layout: Layout) -> list[str]:
    """Return a line for each rank: its share of the data, layers, experts and tokens."""
    if layout.gpus == 1:
        return []
    lines, stages = [], stage_layers(recipe.model.num_hidden_layers, layout.pipeline)
    for rank in range(min(layout.gpus, _MOST_RANKS)):
        parts = [f"data {layout.data_rank(rank)} of {layout.data_parallel}"]
        if layout.pipeline > 1:
            run = stages[rank // layout.stage_ranks]
            parts.append(f"layers {run.start} to {run.stop - 1}")
        if layout.expert > 1:
            each = recipe.model.num_experts // layout.expert
            first = rank % layout.expert * each
            parts.append(f"experts {first} to {first + each - 1}")
        if layout.context > 1:
            parts.append(f"tokens {rank // layout.tensor % layout.context} of {layout.context}")
        if layout.tensor > 1:
            parts.append(f"heads, widths and words {rank % layout.tensor} of {layout.tensor}")
        lines.append(f"  rank {rank}: {', '.join(parts)}; 1/{layout.token_ranks} of the other weights")
    if layout.gpus > _MOST_RANKS:
        lines.append(f"  and so on, up to rank {layout.gpus - 1}")
    return lines


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
