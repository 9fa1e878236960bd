"""Small states and FP8 experts that ranks share out: what a rank is said to hold of them."""

import pytest
import torch

from ling.config.training import OptimConfig
from ling.model import CausalLM
from ling.optim.build import build_optimizer
from ling.scaling.activations import Workload, block_bytes
from ling.scaling.layout import Layout
from ling.scaling.memory import plan_memory
from ling.scaling.precision import PRECISIONS, with_states
from ling.testing.models import tiny_config
from ling.train.plan.simulate import simulate

TINY, WORK = tiny_config(num_hidden_layers=2, num_nextn_predict_layers=0, mtp_loss_scaling_factor=0.0), Workload(16, 1)


def bytes_of_moments(optim: OptimConfig) -> int:
    """Return what one process keeps, `step` aside."""
    with torch.device("meta"):
        optimizer = build_optimizer(CausalLM(TINY), optim)
    return sum(t.nbytes for state in optimizer.state.values() for key, t in state.items() if key != "step")


@pytest.mark.slow
def test_each_of_four_ranks_holds_a_quarter_of_the_moments_and_small_is_what_is_small_as_a_whole() -> None:
    whole = bytes_of_moments(OptimConfig(moments="fp8"))
    precision = with_states(PRECISIONS["float32"], "float32", "fp8")
    found = simulate(TINY, Layout(data_parallel_shard=4, expert=2), WORK, precision)
    assert found.moments == pytest.approx(whole / 4, rel=0.02)  # norms of heads do not divide evenly
    assert whole < 0.45 * bytes_of_moments(OptimConfig()), "in so small a model routers and norms are a large part"


@pytest.mark.parametrize("layout", [Layout(data_parallel_shard=8), Layout(data_parallel_shard=8, expert=8)])
def test_a_plan_divides_weights_and_moments_of_four_bytes_per_parameter(layout: Layout) -> None:
    of_one, of_eight = (
        plan_memory(TINY, at, WORK, with_states(PRECISIONS["fp8"], "bfloat16", "fp8")).resting
        for at in (Layout(), layout)
    )
    assert of_eight.parameters == pytest.approx(of_one.parameters / 8, rel=0.01)
    assert of_eight.moments == pytest.approx(of_one.moments / 8, rel=0.01)


def test_experts_in_fp8_on_ranks_keep_less_than_in_bfloat16_and_more_than_where_they_are_together() -> None:
    model = tiny_config(hidden_size=256, moe_intermediate_size=128)
    alone, apart = Layout(), Layout(data_parallel_shard=4, expert=4)
    work = Workload(256, 4)

    def kept(layout: Layout, precision: str) -> float:
        return block_bytes(model, "sparse", work, layout, PRECISIONS[precision]).feed_forward.routed

    assert kept(alone, "fp8") < kept(apart, "fp8") < 0.6 * kept(apart, "bfloat16")
