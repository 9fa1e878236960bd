"""Bytes of a step: what can be counted is exact, what is predicted is ordered as it must be."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling.config import PRESETS, ModelConfig, preset
from ling.errors import ConfigError
from ling.scaling.activations import Workload
from ling.scaling.held import MemoryPlan
from ling.scaling.layout import RECOMPUTE, Layout, check_layout
from ling.scaling.memory import plan_memory
from ling.scaling.parameters import count_parameters
from ling.scaling.precision import PRECISIONS
from ling.scaling.stored import split_into_stages


def config(name: str, **changes: object) -> ModelConfig:
    return dataclasses.replace(ModelConfig(**preset(name)["model"]), **changes)


def planned(
    name: str,
    layout: Layout,
    *,
    length: int = 4096,
    batch: int = 1,
    micro: int = 1,
    precision: str = "float32",
    mtp: int = 0,
) -> MemoryPlan:
    model = config(name, num_nextn_predict_layers=mtp)
    return plan_memory(model, layout, Workload(length, batch, micro), PRECISIONS[precision])


@pytest.mark.parametrize("name", PRESETS)
def test_units_hold_every_counted_parameter_once(name: str) -> None:
    model = config(name)
    units = [unit for stage in split_into_stages(model, Layout()) for unit in stage.units]
    assert sum(unit.total for unit in units) == count_parameters(model).total_with_mtp


@pytest.mark.parametrize("name", ["ling_mini", "qwen3_8b"])
def test_stages_and_tensor_ranks_hold_every_parameter(name: str) -> None:
    model = config(name)
    cut = Layout(tensor=2, pipeline=4)
    stages = split_into_stages(model, cut)
    assert [len(stage.blocks) for stage in stages] == [model.num_hidden_layers // 4] * 4
    split, whole, experts = (
        sum(getattr(u, part) for stage in stages for u in stage.units) for part in ("split", "whole", "experts")
    )
    assert 2 * split + whole + experts == count_parameters(model).total_with_mtp


def test_a_single_process_in_float32_rests_on_twelve_bytes_per_parameter() -> None:
    total = count_parameters(config("ling_mini", num_nextn_predict_layers=1)).total_with_mtp
    resting = planned("ling_mini", Layout(), mtp=1).resting
    assert (resting.parameters, resting.moments, resting.total) == (4 * total, 8 * total, 12 * total)


@pytest.mark.parametrize("expert", [1, 2, 8])
def test_full_sharding_leaves_each_of_eight_ranks_an_eighth(expert: int) -> None:
    total = count_parameters(config("ling_mini")).total
    resting = planned("ling_mini", Layout(data_parallel_shard=8, expert=expert), precision="bfloat16").resting
    assert resting.parameters == pytest.approx(4 * total / 8, rel=1e-12)
    assert resting.moments == pytest.approx(8 * total / 8, rel=1e-12)


def test_copies_of_a_shard_group_share_out_nothing() -> None:
    alone = planned("ling_mini", Layout(data_parallel_shard=8, expert=8), precision="bfloat16")
    copied = planned(
        "ling_mini", Layout(data_parallel_shard=8, data_parallel_replicate=4, expert=8), precision="bfloat16"
    )
    assert copied.peak == alone.peak


def test_the_published_budget_of_eight_gpus() -> None:
    """spec training.md 6.4, with MTP: GB of weights, gradients, master weights, moments."""
    layout = Layout(data_parallel_shard=8, expert=8)
    rest = planned("ling_mini", layout, precision="megatron_bf16", mtp=1).resting
    found = [round(x / 1e9, 2) for x in (rest.parameters, rest.gradients, rest.master, rest.moments)]
    assert found == [5.98, 11.96, 8.54, 17.08]


sizes = st.fixed_dictionaries(
    {
        "length": st.sampled_from([64, 128, 256]),
        "batch": st.integers(1, 6),
        "mtp": st.integers(0, 2),
        "precision": st.sampled_from(sorted(PRECISIONS)),
    }
)


@settings(deadline=None, max_examples=60)
@given(sizes, st.sampled_from(RECOMPUTE), st.sampled_from([(1, 1), (4, 1), (4, 2), (4, 4)]))
def test_more_tokens_need_more_and_recompute_needs_less(size, recompute, ranks) -> None:
    shard, expert = ranks
    layout = Layout(data_parallel_shard=shard, expert=expert, recompute=recompute)
    here = planned("tiny", layout, **size).peak.total
    assert planned("tiny", layout, **size | {"batch": size["batch"] + 1}).peak.total > here
    assert planned("tiny", layout, **size | {"mtp": size["mtp"] + 1}).peak.total > here
    if recompute == "none":
        # Weighty blocks: a handful of tokens would keep as much in a block's input as in the rest of it.
        again = planned("tiny", dataclasses.replace(layout, recompute="full"), **size).peak.total
        assert again <= here


@pytest.mark.parametrize("precision", ["bfloat16", "megatron_bf16"])
def test_more_ranks_never_need_more_each(precision: str) -> None:
    peaks = [
        planned("ling_mini", Layout(data_parallel_shard=n, expert=8), precision=precision).peak.total
        for n in (8, 16, 64)
    ]
    assert peaks == sorted(peaks, reverse=True)


def test_the_peak_is_the_largest_moment_and_its_categories_add_up() -> None:
    plan = planned("ling_mini", Layout(data_parallel_shard=8, expert=8), precision="bfloat16", mtp=1)
    assert plan.peak.total == max(plan.totals.values()) == plan.totals[plan.moment]
    parts = dataclasses.asdict(plan.peak)
    assert sum(parts.values()) == pytest.approx(plan.peak.total, rel=1e-12)
    assert parts["mtp"] > 0
    assert min(parts.values()) >= 0


def test_accumulating_keeps_all_gradients_through_the_next_forward() -> None:
    once, twice = (planned("tiny", Layout(), length=128, micro=n, mtp=1) for n in (1, 2))
    total = count_parameters(config("tiny")).total_with_mtp
    assert twice.totals["forward of block 0"] - once.totals["forward of block 0"] == pytest.approx(4 * total)


def test_the_first_stage_of_a_pipeline_holds_the_most_microbatches() -> None:
    layout = Layout(pipeline=4)
    few, many = (planned("qwen3_8b", layout, micro=n, precision="bfloat16") for n in (1, 8))
    assert many.stage == 0
    assert many.peak.dense > 3.5 * few.peak.dense or few.stage != 0


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"expert": 3}, "expert 3 does not fit 256 experts in 8 groups"),
        ({"expert": 8}, "on 1 data_parallel_shard x context x tensor ranks; use one of 1"),
        ({"tensor": 8}, "tensor 8 does not divide num_key_value_heads 4; use one of 1, 2, 4"),
        ({"context": 3}, "context 3 does not divide train.sequence_length 4096"),
        ({"pipeline": 21}, "pipeline 21 is more than the 20 layers; use 1 to 20"),
        ({"data_parallel_shard": 0}, "data_parallel_shard must be at least 1, got 0"),
        ({"tensor": 1.5}, "parallel.tensor must be an integer"),
        ({"recompute": "some"}, "parallel.recompute must be none or selective or full"),
    ],
)
def test_layouts_that_cannot_be_are_refused_with_the_choices(axes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_layout(config("ling_mini"), Layout(**axes), 4096)


def test_a_dense_model_has_no_experts_to_share_out() -> None:
    with pytest.raises(ConfigError, match="the model has no experts; use 1"):
        check_layout(config("qwen3_8b"), Layout(data_parallel_shard=8, expert=8), 4096)
