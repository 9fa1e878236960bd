"""Model configurations: published numbers, and contradictions in one clear line."""

import pytest

from ling.config import PRESETS, ModelConfig, preset
from ling.errors import ConfigError
from ling.testing.models import tiny_config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(name: str) -> None:
    ModelConfig(**preset(name).get("model", {}))


def test_an_unknown_preset_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="unknown preset ling_mni; did you mean ling_mini"):
        preset("ling_mni")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_group": 3}, "n_group 3 does not divide num_experts 16"),
        ({"n_group": 16, "topk_group": 8}, "leaves 1 expert per group; a group is scored by its two best"),
        ({"topk_group": 5}, "topk_group 5 is larger than n_group 4"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok 9 is more than the 2 chosen groups hold"),
        ({"num_experts_per_tok": 17, "n_group": 0, "topk_group": 0}, "must lie between 1 and num_experts 16"),
        ({"n_group": 0}, "must both be 0"),
        ({"head_dim": 31, "rotary_dim": 16}, "head_dim must be even"),
        ({"rotary_dim": 64}, "rotary_dim 64 is larger than head_dim 32"),
        ({"rotary_dim": 15}, "rotary_dim must be positive and even"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_attention_heads 4"),
        ({"first_k_dense_replace": 9}, "must lie between 0 and num_hidden_layers 3"),
        ({"hidden_size": 0}, "hidden_size must be positive"),
        ({"num_experts": 0}, "for a dense model set first_k_dense_replace"),
        ({"pad_token_id": 128}, "pad_token_id 128 is no row of a vocabulary of 128"),
        ({"eos_token_id": (1, 200)}, "eos_token_id 200 is no row"),
    ],
)
def test_contradictions_say_what_to_do(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(**changes)


def test_a_dense_model_has_no_experts() -> None:
    config = ModelConfig(**preset("qwen3_8b")["model"])
    assert config.num_moe_layers == 0
    assert not any(config.is_moe(i) for i in range(config.num_hidden_layers))


def test_mtp_layers_are_always_sparse() -> None:
    config = tiny_config(first_k_dense_replace=1)
    assert [config.is_moe(i) for i in range(config.num_stored_layers)] == [False, True, True, True]
