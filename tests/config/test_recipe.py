"""Laying trees over each other, and what happens when a key is misspelt."""

from pathlib import Path

import pytest

from ling.config import ModelConfig
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


def test_an_empty_preset_is_not_no_preset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown preset ''; known: ling_mini"):
        load_recipe(preset_name="")
    with pytest.raises(ConfigError, match="unknown preset ''"):
        load_recipe(file=write(tmp_path, "preset: ''"))


def test_a_document_may_fill_the_context() -> None:
    recipe = load_recipe(preset_name="tiny", overrides=["data.max_document_tokens=256"])
    assert recipe.data.max_document_tokens == recipe.model.max_position_embeddings


def test_a_recipe_has_no_odd_heads_even_if_they_are_rotated_in_part() -> None:
    ModelConfig(head_dim=33, rotary_dim=16)  # such a checkpoint can be read
    with pytest.raises(ConfigError, match=r"model\.head_dim must be even"):
        load_recipe(overrides=["model.head_dim=33", "model.rotary_dim=16"])


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
        ("optim.lr=.nan", r"optim\.lr must be a finite number, got nan"),
        ("optim.clip_grad_norm=.nan", r"optim\.clip_grad_norm must be a finite number, got nan"),
        ("train.max_minutes=.inf", r"train\.max_minutes must be a finite number, got inf"),
        ("optim.eps=0", r"optim\.eps must be positive, got 0"),
        ("train.seed=-1", r"train\.seed must not be negative, got -1"),
        ("train.seed=9223372036854775808", r"train\.seed must lie within 64 bits .*, got 9223372036854775808"),
        ("train.steps=true", r"train\.steps on the command line must not be a boolean, got True"),
        ("optim.lr=yes", r"optim\.lr on the command line must not be a boolean, got True"),
        ("model.eos_token_id=[1, true]", r"model\.eos_token_id on the command line must not be a boolean"),
        ("model.use_bias=1", r"model\.use_bias on the command line must be true or false, got 1"),
        ("model.rope_scaling={type: yarn, factor: true}", r"model\.rope_scaling\.factor .* must not be a boolean"),
        ("model.head_dim=33", r"model\.head_dim must be even \(rotation pairs channels\), got 33"),
        ("train.steps=2024-13-01", r"the value of train\.steps, '2024-13-01', is not valid YAML"),
        ("train.steps=" + "[" * 100_000, r"the value of train\.steps, .* is not valid YAML"),
        ("train.steps=0x" + "f" * 9000, r"train\.steps .*64 bits .*, got a huge int"),
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
    with pytest.raises(ConfigError, match=r"recipe .*recipe\.yaml is nested too deeply"):
        load_recipe(file=write(tmp_path, "[" * 100_000))
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_recipe(file=write(tmp_path, "train: {steps: !!int ''}"))
    with pytest.raises(ConfigError, match=r"cannot read recipe .*: No such file"):
        load_recipe(file=tmp_path / "absent.yaml")


def test_the_diff_lists_what_differs_from_the_default() -> None:
    assert recipe_diff(load_recipe()) == {}
    assert recipe_diff(load_recipe(overrides=["optim.lr=1e-3"])) == {"optim.lr": (3e-4, 1e-3)}
