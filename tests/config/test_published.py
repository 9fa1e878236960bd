"""Every published spelling of config.json, read the one way it is meant, and written out in full."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.golden_cases import GOLDEN

from ling.checkpoint.source import read_json
from ling.config import PRESETS, ModelConfig, preset, read_published, write_published
from ling.config.model import RopeScaling
from ling.errors import CheckpointError, ConfigError

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
    assert read(rope_scaling={**published, "type": None, "rope_type": "yarn"}).rope_scaling == expected
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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 128.0), ("hidden_size", True), ("hidden_size", "128"), ("head_dim", "32"), ("head_dim", 32.0),
        ("rope_scaling", "yarn"), ("rope_scaling", {"type": "yarn", "factor": "x"}), ("rope_scaling", {"type": [1]}),
        ("rope_scaling", {"type": "yarn", "factor": 1e300}), ("rope_scaling", {"type": "linear", "factor": math.nan}),
        ("rope_parameters", 5), ("rope_parameters", {"rope_theta": "x"}), ("rope_parameters", {"rotary_dim": 6.0}),
        ("architectures", 5), ("architectures", "BailingMoeV2ForCausalLM"), ("llm_config", "x"),
        ("num_experts", 64.0), ("num_experts_per_tok", 2.0), ("n_group", 8.0), ("n_group", False),
        ("partial_rotary_factor", math.nan), ("partial_rotary_factor", "0.5"), ("partial_rotary_factor", -1),
        ("moe_router_enable_expert_bias", "no"), ("rms_norm_eps", math.nan), ("rope_theta", math.inf),
        ("num_hidden_layers", 10**7), ("head_dim", 10**400), ("vocab_size", 10**10), ("eos_token_id", [1, 2.0]),
        ("eos_token_id", True), ("torch_dtype", 0), ("architectures", ["a\nb"]),
        ("score_function", 10**400), ("mtp_loss_scaling_factor", "x"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_meant_is_one_line_with_file_and_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        read_published({**BASE, key: value}, where="some/config.json")
    message = str(caught.value)
    assert message.startswith("some/config.json: ")
    assert key.rstrip("s") in message or isinstance(value, dict)
    assert "\n" not in message


def test_a_config_that_is_no_object_is_refused() -> None:
    with pytest.raises(ConfigError, match="facts: a model's configuration must be an object, got 5"):
        read_published(5, where="facts")  # type: ignore[arg-type]


def test_null_means_the_default_for_numbers_too() -> None:
    scaling = {"type": "yarn", "factor": 2.0}
    nulls = read(rope_scaling=scaling, max_position_embeddings=None, rope_theta=None, torch_dtype=None)
    assert nulls == read(rope_scaling=scaling)
    assert read(rope_parameters={"rope_theta": None}) == read()


def test_an_odd_head_is_read_if_a_part_of_it_is_rotated() -> None:
    assert read(head_dim=33, partial_rotary_factor=0.5).rotated_dim == 16
    with pytest.raises(ConfigError, match=r"head_dim must be even \(rotation pairs channels\), got 33"):
        read(head_dim=33)


VALID = {
    **write_published(ModelConfig(**preset("ling_mini")["model"])),
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "beta_fast": 32},
    "rope_parameters": {"rope_type": "default", "rope_theta": 6e5, "partial_rotary_factor": 0.5},
    "dtype": "bfloat16",
    "llm_config": None,
}
NUMBERS = (
    st.integers(-3, 300)
    | st.floats()
    | st.sampled_from([math.nan, math.inf, 10**9, 10**18, 10**400, -(10**400), 1e308])
)
SCALARS = (
    st.none() | st.booleans() | NUMBERS | st.text(max_size=4) | st.sampled_from(["yarn", "linear", "float32", "128"])
)
SCALING_KEYS = (
    "type",
    "rope_type",
    *RopeScaling.__dataclass_fields__,
    "rope_theta",
    "rotary_dim",
    "partial_rotary_factor",
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(SCALING_KEYS) | st.text(), inner),
    max_leaves=6,
)


def model_or_error(config: dict) -> ModelConfig | str:
    try:
        return read_published(config, where="some/config.json")
    except ConfigError as error:
        return str(error)


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(VALID)), JSON, min_size=1, max_size=3), st.sampled_from([BASE, VALID]))
def test_any_json_is_a_model_or_one_clear_error(changes: dict, base: dict) -> None:
    outcome = model_or_error({**base, **changes})
    if isinstance(outcome, str):
        assert outcome.startswith("some/config.json: ")
    else:
        json.dumps(write_published(outcome), allow_nan=False)


@given(st.dictionaries(st.sampled_from(SCALING_KEYS), SCALARS), st.sampled_from(["linear", "yarn"]))
def test_any_rope_scaling_is_a_model_or_one_clear_error(changes: dict, kind: str) -> None:
    scaling = {"type": kind, "factor": 4.0, "original_max_position_embeddings": 32768, **changes}
    outcome = model_or_error({**BASE, "rope_scaling": scaling})
    if isinstance(outcome, str):
        assert outcome.startswith("some/config.json: ")
    else:
        json.dumps(write_published(outcome), allow_nan=False)


def test_a_file_nested_too_deeply_is_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"config\.json is nested too deeply"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("path", sorted((GOLDEN / "forward").glob("*/config.json")), ids=lambda p: p.parent.name)
def test_golden_configs_survive_a_round_trip(path) -> None:
    config = read_published(json.loads(path.read_text()))
    back = read_published(write_published(config))
    assert write_published(back) == write_published(config)
