"""Every recipe of the package resolves, and the published ones say what the published scripts say."""

from pathlib import Path

import pytest

from ling.config.recipe import load_recipe, packaged_recipes
from ling.scaling.layout import plan_layout


@pytest.mark.parametrize("name", packaged_recipes())
def test_it_resolves_and_its_layout_fits_eight_ranks(name: str) -> None:
    recipe = load_recipe(file=Path(name))
    layout = plan_layout(recipe.parallel, recipe.model, 8, recipe.train.sequence_length)
    assert layout.gpus == 8
    assert recipe.train.global_batch_size % recipe.train.micro_batch_size == 0


@pytest.mark.parametrize(
    ("name", "length", "micro", "theta"),
    [("cpt_mini_4k", 4096, 1, 1e4), ("cpt_mini_8k", 8192, 2, 6e5), ("cpt_mini_32k", 32768, 1, 6e5)],
)
def test_continued_pre_training_has_the_published_settings(name: str, length: int, micro: int, theta: float) -> None:
    recipe = load_recipe(file=Path(name))
    assert (recipe.train.sequence_length, recipe.model.max_position_embeddings) == (length, length)
    assert (recipe.train.micro_batch_size, recipe.train.global_batch_size) == (micro, 128)
    assert recipe.model.rope_theta == theta
    assert (recipe.optim.lr, recipe.optim.end_lr, recipe.optim.schedule) == (3e-5, 3e-6, "cosine")
    assert recipe.model.num_nextn_predict_layers == 1
