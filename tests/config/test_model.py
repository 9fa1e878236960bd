"""Model configurations: published numbers, and contradictions in one clear line."""

import pytest

from ling.config import PRESETS, ModelConfig, RopeScaling, preset
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
        ({"head_dim": 33, "rotary_dim": None}, r"model\.head_dim must be even \(rotation pairs channels\), got 33"),
        ({"rotary_dim": 64}, "rotary_dim 64 is larger than head_dim 32"),
        ({"rotary_dim": 15}, "rotary_dim must be positive and even"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_attention_heads 4"),
        ({"first_k_dense_replace": 9}, "must lie between 0 and num_hidden_layers 3"),
        ({"hidden_size": 0}, "hidden_size must be positive"),
        ({"moe_shared_expert_intermediate_size": -1}, "moe_shared_expert_intermediate_size must not be negative"),
        ({"num_hidden_layers": 10**7}, "num_hidden_layers must be at most 100000, got 10000000"),
        ({"num_nextn_predict_layers": 10**6}, "num_nextn_predict_layers must be at most 100000"),
        ({"hidden_size": 10**10}, "hidden_size must be at most 1000000000"),
        ({"rope_theta": 1.0}, "rope_theta must be greater than 1"),
        ({"num_experts": 0}, "for a dense model set first_k_dense_replace"),
        ({"pad_token_id": 128}, "pad_token_id 128 is no row of a vocabulary of 128"),
        ({"eos_token_id": (1, 200)}, "eos_token_id 200 is no row"),
    ],
)
def test_contradictions_say_what_to_do(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "linear", "original_max_position_embeddings": -1}, "original_max_position_embeddings must be posi"),
        ({"original_max_position_embeddings": 0}, "original_max_position_embeddings must be positive"),
        ({"original_max_position_embeddings": None}, "of type yarn needs original_max_position_embeddings"),
        ({"factor": 0}, "factor must be at least 1"),
        ({"factor": 1e300}, "factor must be at least 1 .and at most 1e9., got 1e"),
        ({"beta_fast": 0.0}, "beta_fast must be positive"),
        ({"beta_slow": -1.0}, "beta_slow must be positive"),
        ({"beta_slow": 40.0}, "beta_fast 32.0 must not be below beta_slow 40.0"),
        ({"attention_factor": 0.0}, "attention_factor must be positive"),
        ({"mscale": -1.0}, "mscale must not be negative"),
        ({"truncate": 1}, "truncate must be true or false, got 1"),
        ({"type": "longrope"}, "type must be linear or yarn, got 'longrope'"),
    ],
)
def test_a_stretch_that_cannot_be_meant_is_refused(changes: dict, message: str) -> None:
    valid = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    with pytest.raises(ConfigError, match=rf"model\.rope_scaling.*{message}"):
        RopeScaling(**{**valid, **changes})


def test_an_odd_head_may_be_rotated_in_part() -> None:
    assert tiny_config(head_dim=33, rotary_dim=16).rotated_dim == 16


def test_a_dense_model_has_no_experts() -> None:
    config = ModelConfig(**preset("qwen3_8b")["model"])
    assert config.num_moe_layers == 0
    assert not any(config.is_moe(i) for i in range(config.num_hidden_layers))


def test_mtp_layers_are_always_sparse() -> None:
    config = tiny_config(first_k_dense_replace=1)
    assert [config.is_moe(i) for i in range(config.num_stored_layers)] == [False, True, True, True]
