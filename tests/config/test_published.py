"""Every published spelling of config.json, read the one way it is meant, and written out in full."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.golden_cases import GOLDEN

from ling.config import PRESETS, ModelConfig, preset, read_published, write_published
from ling.config.model import RopeScaling
from ling.errors import ConfigError

BASE = {"architectures": ["BailingMoeV2ForCausalLM"], "model_type": "bailing_moe"}


def read(**keys: object) -> ModelConfig:
    return read_published({**BASE, **keys})


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_written_reads_back_as_the_same_network(name: str) -> None:
    config = ModelConfig(**preset(name).get("model", {}))
    back = read_published(json.loads(json.dumps(write_published(config))))
    assert write_published(back) == write_published(config)
    assert (back.rotated_dim, back.shared_expert_dim) == (config.rotated_dim, config.shared_expert_dim)


@given(st.integers(1, 128).map(lambda n: 2 * n), st.integers(1, 128).map(lambda n: 2 * n))
def test_any_rotary_width_survives_the_factor_that_engines_read(head_dim: int, rotary_dim: int) -> None:
    if rotary_dim > head_dim:
        return
    written = write_published(ModelConfig(head_dim=head_dim, rotary_dim=rotary_dim))
    assert int(head_dim * written["partial_rotary_factor"]) == rotary_dim
    assert read_published(written).rotated_dim == rotary_dim


def test_every_key_that_an_engine_reads_is_written() -> None:
    written = write_published(ModelConfig(**preset("ling_mini")["model"]))
    for key in (
        "partial_rotary_factor", "rotary_dim", "norm_topk_prob", "score_function", "router_dtype", "use_rmsnorm",
        "moe_shared_expert_intermediate_size", "use_qk_norm", "moe_router_enable_expert_bias",
    ):  # fmt: skip
        assert written[key] is not None, key


def test_missing_keys_mean_what_the_published_class_makes_of_them() -> None:
    config = read()
    assert config.rotated_dim == config.head_dim == 128  # no rotary key: the whole head turns
    assert (config.n_group, config.topk_group, config.num_shared_experts) == (8, 4, 1)
    assert config.mtp_loss_scaling_factor == 0


def test_rotary_width_in_all_three_spellings() -> None:
    assert read(partial_rotary_factor=0.5).rotated_dim == 64
    assert read(rotary_dim=64).rotated_dim == 64
    assert read(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 1e4}) == read(
        partial_rotary_factor=0.5, rope_theta=1e4
    )
    with pytest.raises(ConfigError, match=r"rotary_dim 64 contradicts partial_rotary_factor 0.25"):
        read(rotary_dim=64, partial_rotary_factor=0.25)


def test_null_and_zero_mean_none() -> None:
    config = read(n_group=0, topk_group=None, num_shared_experts=None, head_dim=None)
    assert (config.n_group, config.topk_group, config.num_shared_experts) == (0, 0, 0)
    assert config.head_dim == 2048 // 16


def test_both_yarn_spellings() -> None:
    published = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    expected = RopeScaling(type="yarn", factor=4.0, original_max_position_embeddings=32768)
    assert read(rope_scaling=published).rope_scaling == expected
    assert read(rope_scaling={**published, "rope_type": "yarn"}).rope_scaling == expected
    assert read(rope_parameters={**published, "rope_theta": 6e5}).rope_scaling == expected
    assert read(rope_scaling={**published, "beta_fast": None, "beta_slow": 0}).rope_scaling == expected
    assert read(rope_scaling={"type": "default"}).rope_scaling is None
    with pytest.raises(ConfigError, match="contradicts rope_type"):
        read(rope_scaling={**published, "rope_type": "linear"})
    with pytest.raises(ConfigError, match="type longrope is not supported"):
        read(rope_scaling={"rope_type": "longrope", "factor": 4.0})
    with pytest.raises(ConfigError, match="needs a factor"):
        read(rope_scaling={"type": "yarn", "original_max_position_embeddings": 8})


def test_yarn_as_published_raises_the_context() -> None:
    published = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert read(rope_scaling=published, max_position_embeddings=32768).max_position_embeddings == 131072
    assert read(rope_scaling=published, max_position_embeddings=262144).max_position_embeddings == 262144
    assert read(rope_scaling={"type": "linear", "factor": 4.0}).max_position_embeddings == 32768


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("score_function", "softmax"), ("hidden_act", "gelu"), ("norm_topk_prob", False), ("use_rmsnorm", False),
        ("attention_dropout", 0.1), ("norm_head", True),
    ],
)  # fmt: skip
def test_what_would_be_another_network_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key} = {value!r} is another network"):
        read(**{key: value})


def test_another_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match="architecture LlamaForCausalLM is not BailingMoeV2ForCausalLM"):
        read_published({"architectures": ["LlamaForCausalLM"]})
    with pytest.raises(ConfigError, match="neither architectures nor model_type"):
        read_published({"hidden_size": 8})


def test_a_nested_config_is_followed_and_unknown_keys_are_announced(caplog) -> None:
    config = read_published({"llm_config": {**BASE, "hidden_size": 1024, "tuned_by": "somebody"}})
    assert config.hidden_size == 1024
    assert "ignoring keys without meaning for Ling 2.0: tuned_by" in caplog.text


def test_lists_of_stop_ids_and_dtypes() -> None:
    config = read(eos_token_id=[156892, 156895], dtype="float32")
    assert config.eos_token_ids == (156892, 156895)
    assert config.torch_dtype == "float32"
    with pytest.raises(ConfigError, match="torch_dtype float16 is not supported"):
        read(torch_dtype="float16")


@pytest.mark.parametrize("path", sorted((GOLDEN / "forward").glob("*/config.json")), ids=lambda p: p.parent.name)
def test_golden_configs_survive_a_round_trip(path) -> None:
    config = read_published(json.loads(path.read_text()))
    back = read_published(write_published(config))
    assert write_published(back) == write_published(config)
