"""Checks across sections. Checks of one field stand beside the field."""

from typing import TYPE_CHECKING

from ling.config.model import ODD_HEAD_DIM
from ling.errors import ConfigError

if TYPE_CHECKING:
    from ling.config.recipe import Recipe


def check_recipe(recipe: "Recipe") -> None:
    """Raise ConfigError for sections that contradict each other."""
    if recipe.model.head_dim % 2:
        raise ConfigError(ODD_HEAD_DIM.format(recipe.model.head_dim))
    longest = recipe.data.max_document_tokens
    if longest > recipe.model.max_position_embeddings:
        raise ConfigError(
            f"data.max_document_tokens {longest} is beyond model.max_position_embeddings "
            f"{recipe.model.max_position_embeddings}; lower the first or raise the second"
        )
    if longest > recipe.train.tokens_per_step:
        raise ConfigError(
            f"data.max_document_tokens {longest} does not fit into train.tokens_per_step "
            f"{recipe.train.tokens_per_step}; lower the first or raise the second"
        )
    if recipe.data.files and recipe.finetune.data:
        raise ConfigError("data.files and finetune.data are both given; a run reads one of them")
    if recipe.data.files and recipe.train.sequence_length > recipe.model.max_position_embeddings:
        raise ConfigError(
            f"train.sequence_length {recipe.train.sequence_length} is beyond model.max_position_embeddings "
            f"{recipe.model.max_position_embeddings}; lower the first or raise the second"
        )
    for axis in ("tensor", "pipeline"):
        if getattr(recipe.parallel, axis) != 1 and recipe.run.evaluate_every and recipe.run.evaluate_prompts:
            raise ConfigError(
                f"run.evaluate_prompts {recipe.run.evaluate_prompts}: {axis} ranks measure held-out losses but "
                f"generate no text; use 0, or parallel.{axis} 1"
            )
    for axis in ("tensor", "pipeline"):
        for what in without_pieces(recipe) if (size := getattr(recipe.parallel, axis)) != 1 else ():
            raise ConfigError(f"{what} does without tensor and pipeline ranks, but parallel.{axis} is {size}; use 1")
    if recipe.train.precision == "fp8" and recipe.parallel.recompute == "selective":
        raise ConfigError("train.precision fp8 does not go with parallel.recompute selective; use none or full")
    if recipe.optim.weights == "bfloat16" and recipe.train.precision == "float32":
        raise ConfigError(
            "with optim.weights bfloat16 products are in bfloat16; use train.precision bfloat16 or fp8, not float32"
        )
    optim, steps = recipe.optim, recipe.train.steps
    if optim.decay_steps > steps:
        raise ConfigError(f"optim.decay_steps {optim.decay_steps} is more than train.steps {steps}")
    if optim.schedule != "constant" and optim.warmup_steps + optim.decay_steps > steps:
        decay = f" and optim.decay_steps {optim.decay_steps}" if optim.decay_steps else ""
        raise ConfigError(f"optim.warmup_steps {optim.warmup_steps}{decay} do not fit into train.steps {steps}")
    optim.batch_ramp.check_end(recipe.train.global_batch_size)
    if optim.schedule != "constant" and recipe.train.average_last:
        raise ConfigError(
            f"optim.schedule {optim.schedule} and train.average_last {recipe.train.average_last} would decay twice; "
            "set one of them to constant, or to 0"
        )
    span = recipe.train.average_last * recipe.train.average_every
    if span > recipe.train.steps:
        raise ConfigError(
            f"train.average_last {recipe.train.average_last} snapshots every train.average_every "
            f"{recipe.train.average_every} steps span {span} steps, but train.steps is {recipe.train.steps}; "
            "lower either (or average_last=0)"
        )


def without_pieces(recipe: "Recipe") -> list[str]:
    """Return what a recipe asks for that ranks with pieces of layers, or with some of them, do not have."""
    optim, precision = recipe.optim, recipe.train.precision
    asked = {
        "optim.in_backward": optim.in_backward,
        f"train.precision {precision}": precision == "fp8",
        f"optim.weights {optim.weights}": optim.weights != "float32",
        f"optim.moments {optim.moments}": optim.moments != "float32",
        f"optim.clipping {optim.clipping}": optim.clipping == "update",
    }
    return [what for what, is_asked in asked.items() if is_asked]
