"""What a run would do: what the recipe changes, how large it is, what a step costs."""

from pathlib import Path

from ling.config.recipe import Recipe, recipe_diff
from ling.scaling.flops import count_flops
from ling.scaling.parameters import count_parameters


def describe(recipe: Recipe, directory: Path) -> str:
    """Return a few lines; memory is that of weights, gradients and moments in float32, without activations."""
    counts, train = count_parameters(recipe.model), recipe.train
    flops = count_flops(recipe.model, recipe.data.max_document_tokens)
    held, tokens = 16 * counts.total_with_mtp, train.tokens_per_step * train.steps
    changes = [f"  {key}: {after}  (default {before})" for key, (before, after) in recipe_diff(recipe).items()]
    begin = "new weights" if recipe.run.start_from is None else f"the weights of {recipe.run.start_from}"
    return "\n".join(
        [
            f"directory:   {directory}",
            f"begins with: {begin}",
            f"parameters:  {counts.total_with_mtp:,}, of them {counts.activated:,} at work per token without MTP",
            f"steps:       {train.steps:,} of at most {train.tokens_per_step:,} tokens",
            f"FLOPs:       {flops.training:.3g} per token, {flops.training * tokens:.3g} in all",
            f"memory:      {held / 1e9:.2f} GB for weights, gradients and moments, in float32; activations come on top",
            "layout:      one process",
            "differs from the defaults:",
            *changes,
        ]
    )
