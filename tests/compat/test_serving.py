"""What can be served how: sizes that divide, contexts that fit, and refusals that name what would do."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling.compat.serving import Serving, check_serving, with_yarn
from ling.config import ModelConfig, preset
from ling.errors import ConfigError

MINI = ModelConfig(**preset("ling_mini")["model"])


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_mini_is_shared_by_sizes_that_divide_its_heads(size: int) -> None:
    check_serving(MINI, "bfloat16", Serving(tensor_parallel_size=size))


def test_a_size_that_does_not_divide_the_heads_is_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"size 3: 16 query heads are not divisible by 3. Use 1, 2, 4, 8 or 16"):
        check_serving(MINI, "bfloat16", Serving(tensor_parallel_size=3))


def test_key_value_heads_are_dealt_out_or_repeated_but_not_both() -> None:
    model = dataclasses.replace(MINI, num_attention_heads=12, num_key_value_heads=4, hidden_size=1536)
    with pytest.raises(ConfigError, match=r"4 key-value heads cannot be dealt out or repeated over 6 devices"):
        check_serving(model, "bfloat16", Serving(tensor_parallel_size=6))


def test_fp8_blocks_limit_the_size() -> None:
    """512 columns of an expert are 4 blocks; vLLM and SGLang refuse to start with half a block."""
    check_serving(MINI, "float8", Serving(tensor_parallel_size=4))
    with pytest.raises(
        ConfigError, match=r"experts' width \(64 rows\) is not a multiple of FP8's blocks.*Use 1, 2 or 4"
    ):
        check_serving(MINI, "float8", Serving(tensor_parallel_size=8))


def test_a_network_narrower_than_a_block_has_no_fp8_at_all() -> None:
    narrow = dataclasses.replace(MINI, moe_intermediate_size=96)
    with pytest.raises(ConfigError, match="no engine takes FP8 blocks of this network; use --dtype bfloat16"):
        check_serving(narrow, "float8", Serving())


def test_more_stages_than_layers_are_refused() -> None:
    check_serving(MINI, "bfloat16", Serving(pipeline_parallel_size=20))
    with pytest.raises(ConfigError, match=r"the model has 20 layers to deal out\. Use 1 to 20"):
        check_serving(MINI, "bfloat16", Serving(pipeline_parallel_size=21))


def test_a_context_beyond_the_models_is_refused_with_the_factor_that_reaches_it() -> None:
    with pytest.raises(ConfigError, match=r"has 32768 tokens. Use at most 32768, or stretch it with --yarn 4"):
        check_serving(MINI, "bfloat16", Serving(max_model_len=131072))
    check_serving(with_yarn(MINI, 4.0), "bfloat16", Serving(max_model_len=131072, yarn=4.0))


def test_yarn_stretches_the_trained_context_once() -> None:
    once = with_yarn(MINI, 4.0)
    again = with_yarn(once, 2.0)
    assert once.max_position_embeddings == 131072
    assert again.max_position_embeddings == 65536
    assert again.rope_scaling is not None
    assert again.rope_scaling.original_max_position_embeddings == 32768
    assert with_yarn(once, None) is once


@pytest.mark.parametrize("factor", [1.0, 0.5, -4.0, float("nan"), float("inf")])
def test_a_factor_that_stretches_nothing_is_refused(factor: float) -> None:
    with pytest.raises(ConfigError, match="--yarn must be a factor above 1"):
        with_yarn(MINI, factor)


@given(size=st.integers(-2, 40), precision=st.sampled_from(["bfloat16", "float8"]))
def test_every_size_is_either_taken_or_refused_with_sizes_that_are(size: int, precision: str) -> None:
    try:
        check_serving(MINI, precision, Serving(tensor_parallel_size=size))  # type: ignore[arg-type]
    except ConfigError as error:
        named = str(error).rpartition("Use ")[2].replace(" or ", ", ").split(", ")
        for other in named:
            check_serving(MINI, precision, Serving(tensor_parallel_size=int(other)))  # type: ignore[arg-type]
        assert str(size) not in named
