"""Laying trees over each other, and what happens when a key is misspelt."""

from pathlib import Path

import pytest

from ling.config.recipe import load_recipe, recipe_diff
from ling.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_later_layers_win(tmp_path: Path) -> None:
    file = write(tmp_path, "preset: tiny\noptim:\n  lr: 1e-3\n  beta2: 0.99\ntrain: {steps: 7000}\n")
    recipe = load_recipe(file=file, overrides=["optim.lr=2e-3", "model.hidden_size=32"])
    assert (recipe.optim.lr, recipe.optim.beta2, recipe.train.steps) == (2e-3, 0.99, 7000)
    assert (recipe.model.hidden_size, recipe.model.num_experts) == (32, 16)
    assert load_recipe(preset_name="ling_1t", file=file).model.num_hidden_layers == 80  # a flag beats the file's preset


def test_changes_that_only_fit_together_are_accepted() -> None:
    recipe = load_recipe(preset_name="tiny", overrides=["model.n_group=5", "model.num_experts=20"])
    assert recipe.model.num_experts == 20


def test_nested_sections_can_be_built_from_nothing() -> None:
    keys = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 64}
    recipe = load_recipe(preset_name="tiny", overrides=[f"model.rope_scaling.{k}={v}" for k, v in keys.items()])
    assert recipe.model.rope_scaling is not None
    assert recipe.model.rope_scaling.factor == 4.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", r"unknown key optim\.lrr on the command line; did you mean optim\.lr\?"),
        ("lr=1", r"unknown key lr on the command line; did you mean optim\.lr\?"),
        ("modle.hidden_size=1", r"unknown key modle on the command line; did you mean model\?"),
        ("model=3", r"model on the command line is a section, but its value is 3"),
        ("model.hidden_size=wide", r"model\.hidden_size = 'wide': Input should be a valid integer"),
        ("model.hidden_size", r"override 'model.hidden_size' is not of the form section\.key=value"),
        ("model.eos_token_id=[1", r"the value of model\.eos_token_id, '\[1', is not valid YAML"),
        ("train.steps=0", r"train\.steps must be at least 1, got 0"),
        ("data.max_document_tokens=512", r"beyond model\.max_position_embeddings 256"),
        ("train.tokens_per_step=100", r"does not fit into train\.tokens_per_step 100"),
    ],
)
def test_mistakes_get_one_clear_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(preset_name="tiny", overrides=[override])
    assert "\n" not in str(caught.value)


def test_mistakes_in_a_file_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key optim\.lrr in .*recipe\.yaml; did you mean optim\.lr"):
        load_recipe(file=write(tmp_path, "optim: {lrr: 1}"))
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_recipe(file=write(tmp_path, "optim: [1"))
    with pytest.raises(ConfigError, match="must be a mapping of sections, not list"):
        load_recipe(file=write(tmp_path, "- 1"))
    with pytest.raises(ConfigError, match=r"cannot read recipe .*: No such file"):
        load_recipe(file=tmp_path / "absent.yaml")


def test_the_diff_lists_what_differs_from_the_default() -> None:
    assert recipe_diff(load_recipe()) == {}
    assert recipe_diff(load_recipe(overrides=["optim.lr=1e-3"])) == {"optim.lr": (3e-4, 1e-3)}
