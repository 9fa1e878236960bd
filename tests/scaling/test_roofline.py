"""Predicted time: identities that must hold exactly, order that must hold always, and the published figures."""

import dataclasses

import pytest

from ling.config import ModelConfig, preset
from ling.scaling import hardware as fact
from ling.scaling.activations import Workload, rank_visits
from ling.scaling.flops import count_flops
from ling.scaling.hardware import HARDWARE, hardware
from ling.scaling.layout import Layout
from ling.scaling.precision import PRECISIONS
from ling.scaling.published import network, reproduce_log, reproduce_table
from ling.scaling.roofline import TERMS, StepTime, predict_step

EIGHT = Layout(data_parallel_shard=8, expert=8)


def predicted(layout: Layout = EIGHT, *, name: str = "ling_mini", mtp: int = 0, gpu: str = "h100", **work) -> StepTime:
    device = dataclasses.replace(HARDWARE["h100"], **gpu) if isinstance(gpu, dict) else HARDWARE[gpu]
    load = Workload(**{"sequence_length": 4096, "microbatches": 16} | work)
    return predict_step(network(name, mtp), layout, load, PRECISIONS["bfloat16"], device)


def test_products_of_a_dense_model_take_their_flops_at_the_stated_rate() -> None:
    step, flops = predicted(Layout(), name="qwen3_8b"), count_flops(network("qwen3_8b", 0), 4096)
    products = 3 * (flops.projections + flops.feed_forward + flops.head) * 16 * 4096
    assert step.terms["dense_gemm"] == pytest.approx(products / (989.4e12 * fact.DENSE_GEMM))
    attention = (1 + fact.ATTENTION_BACKWARD) * flops.attention * 16 * 4096
    assert step.terms["attention"] == pytest.approx(attention / (989.4e12 * fact.ATTENTION))


def test_terms_add_up_to_the_step_and_the_largest_binds() -> None:
    step = predicted(mtp=1)
    assert set(step.terms) == set(TERMS)
    assert step.seconds == pytest.approx(sum(step.terms.values()))
    assert step.terms[step.binding] == max(step.terms.values())
    assert step.tokens == 8 * 16 * 4096
    assert step.mfu_percent == pytest.approx(100 * step.tflops / 989.4)


@pytest.mark.parametrize("rate", ["bf16_tflops", "float32_tflops", "memory_gb_per_second", "link_gb_per_second"])
def test_a_faster_device_is_never_slower(rate: str) -> None:
    faster = predicted(gpu={rate: 2 * getattr(HARDWARE["h100"], rate)}, mtp=1)
    assert faster.seconds < predicted(mtp=1).seconds


def test_recompute_and_mtp_cost_time() -> None:
    none, selective, full = (
        predicted(dataclasses.replace(EIGHT, recompute=r)).seconds for r in ("none", "selective", "full")
    )
    assert none < selective < full
    assert predicted(mtp=1).seconds > predicted().seconds


def test_the_bubble_shrinks_with_microbatches() -> None:
    layout = Layout(data_parallel_shard=2, expert=2, pipeline=4)
    for m in (4, 64):
        step = predicted(layout, microbatches=m)
        passing = step.seconds - step.terms["optimizer"]  # the update waits for nobody
        assert step.terms["bubble"] / passing == pytest.approx(3 / (m + 3))


def test_experts_that_leave_the_node_pay_the_network() -> None:
    inside = predicted(Layout(data_parallel_shard=16, expert=8)).terms["dispatch"]
    outside = predicted(Layout(data_parallel_shard=16, expert=16)).terms["dispatch"]
    assert outside > 3 * inside


def test_groups_bound_how_many_ranks_a_token_visits() -> None:
    mini = network("ling_mini", 0)
    assert [rank_visits(mini, n) for n in (1, 2, 4, 8, 16)] == [1, 2, 4, 4, 8]


def test_an_unknown_gpu_is_refused_with_those_known() -> None:
    with pytest.raises(Exception, match="unknown GPU v100; known: h100, h200"):
        hardware("v100")


# ---- the published figures ----


def test_exactly_one_published_figure_is_fitted_and_it_fits() -> None:
    (fitted,) = [row for row in reproduce_table() if row.fitted]
    assert fitted.ratio == pytest.approx(1, abs=0.002)
    assert (fitted.model, fitted.gpus) == ("llama31_8b", 8)


def test_the_published_table_has_all_its_rows_and_no_prediction_falls_below_what_was_reached() -> None:
    """A prediction is what a layout could do: below a measured figure it would be refuted."""
    rows = reproduce_table()
    assert [(row.gpus, row.mtp_layers) for row in rows] == [(gpus, mtp) for mtp in (0, 0, 1, 0) for gpus in (8, 16, 32)]
    assert all(0.99 < row.ratio < 2 for row in rows), [round(row.ratio, 2) for row in rows]


def test_the_memory_of_the_published_log_is_explained() -> None:
    log = reproduce_log()
    assert log.resting_ratio == pytest.approx(1, abs=0.05)
    assert log.peak_ratio == pytest.approx(1, abs=0.05)
    assert log.memory.peak.loss > 0.5 * log.memory.peak.total


def test_presets_are_what_is_planned() -> None:
    assert network("ling_mini", 0) == ModelConfig(**preset("ling_mini")["model"])
