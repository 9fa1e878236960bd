"""A step without content against a step with it, against counts, and against the prediction."""

import pytest
import torch.distributed as dist
from benchmarks.plan_memory import measure

from ling.config import ModelConfig, preset
from ling.errors import ConfigError
from ling.scaling.activations import Workload
from ling.scaling.layout import Layout
from ling.scaling.memory import plan_memory
from ling.scaling.parameters import count_parameters
from ling.scaling.precision import PRECISIONS
from ling.testing.models import tiny_config
from ling.train.plan.simulate import Simulation, simulate

TINY, WORK = tiny_config(), Workload(64, 2)


def simulated(
    layout: Layout, precision: str = "float32", model: ModelConfig = TINY, work: Workload = WORK
) -> Simulation:
    return simulate(model, layout, work, PRECISIONS[precision])


def test_a_real_step_peaks_where_simulation_and_prediction_say() -> None:
    work = Workload(128, 4)
    measured = measure(TINY, 128, 4)
    total = count_parameters(TINY).total_with_mtp
    assert measured["resting_bytes"] == pytest.approx(12 * total, rel=0.01)  # and a step count per parameter
    assert simulated(Layout(), work=work).total == pytest.approx(measured["peak_bytes"], rel=0.02)
    planned = plan_memory(TINY, Layout(), work, PRECISIONS["float32"])
    assert planned.peak.total == pytest.approx(measured["peak_bytes"], rel=0.10)


def test_one_rank_of_eight_keeps_an_eighth() -> None:
    whole, eighth = (simulated(Layout(data_parallel_shard=n)) for n in (1, 8))
    total = count_parameters(TINY).total_with_mtp
    assert (whole.parameters, whole.moments) == (4 * total, 8 * total)
    assert eighth.moments == pytest.approx(total, rel=0.01)  # norms of heads do not divide evenly
    assert eighth.total < whole.total


def test_a_thousand_ranks_construct_and_leave_no_process_group_behind() -> None:
    layout = Layout(data_parallel_shard=64, data_parallel_replicate=16)
    assert simulated(layout).moments < simulated(Layout(data_parallel_shard=8)).moments
    assert not dist.is_initialized()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_the_prediction_follows_the_simulation(precision: str, recompute: str) -> None:
    tree = preset("demo")["model"] | {"num_hidden_layers": 2, "first_k_dense_replace": 1}
    demo, work = ModelConfig(**tree), Workload(256, 4)
    layout = Layout(data_parallel_shard=4, recompute=recompute)  # type: ignore[arg-type]
    planned = plan_memory(demo, layout, work, PRECISIONS[precision])
    assert planned.peak.total == pytest.approx(simulated(layout, precision, demo, work).total, rel=0.10)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(data_parallel_shard=4, expert=4), "cannot simulate parallel.expert 4: only data-parallel layouts"),
        (Layout(tensor=2), "cannot simulate parallel.tensor 2"),
        (Layout(recompute="selective"), "cannot simulate recompute selective"),
        (Layout(data_parallel_shard=2048), "cannot simulate 2048 ranks; at most 1024"),
    ],
)
def test_layouts_that_todays_code_cannot_build_are_refused(layout: Layout, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        simulated(layout)
    assert not dist.is_initialized()


def test_experts_too_narrow_for_grouped_products_are_refused() -> None:
    with pytest.raises(ConfigError, match="experts of width 12 in bfloat16"):
        simulated(Layout(), "bfloat16")


def test_another_trainers_state_is_not_simulated() -> None:
    with pytest.raises(ConfigError, match="only our own training steps"):
        simulated(Layout(), "megatron_fp8")


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_ling_mini_on_eight_gpus(recompute: str) -> None:
    mini, work = ModelConfig(**preset("ling_mini")["model"]), Workload(4096)
    layout = Layout(data_parallel_shard=8, recompute=recompute)  # type: ignore[arg-type]
    found = simulated(layout, "bfloat16", mini, work)
    assert found.moments == 8 * count_parameters(mini).total // 8
    planned = plan_memory(mini, layout, work, PRECISIONS["bfloat16"])
    assert planned.peak.total == pytest.approx(found.total, rel=0.10)
