"""What the comparisons of losses are made of: the arm in bfloat16, the noise floor, gaps, rates of a smaller batch."""

import pytest
import torch
from benchmarks.rounded_operands import rounded_linear, rounded_mix
from torch import Tensor

from benchmarks import adama, fp8_loss_gap, small_state
from ling.config import ModelConfig, preset
from ling.config.training import OptimConfig
from ling.model import CausalLM, init_weights
from ling.ops.moe import mix_experts
from ling.testing.tolerances import SUM_ORDER, assert_close


def rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).float()


def test_a_linear_map_has_bfloat16_operands_in_all_three_products() -> None:
    draw = torch.Generator().manual_seed(0)
    x, w, dy = (torch.randn(shape, generator=draw) for shape in ((24, 16), (8, 16), (24, 8)))
    x.requires_grad_(), w.requires_grad_()
    y = rounded_linear(x, w)
    y.backward(dy)
    assert x.grad is not None
    assert w.grad is not None
    assert_close(y, rounded(x) @ rounded(w).T, SUM_ORDER, "y")
    assert_close(x.grad, rounded(dy) @ rounded(w), SUM_ORDER, "dx")
    assert_close(w.grad, rounded(dy).T @ rounded(x), SUM_ORDER, "dw")
    assert not torch.equal(y, x @ w.T)


def test_experts_with_bfloat16_operands_are_the_experts_up_to_rounding() -> None:
    draw = torch.Generator().manual_seed(0)
    N, k, E, F, H = 40, 2, 4, 8, 16
    x, mix = torch.randn(N, H, generator=draw), torch.rand(N, k, generator=draw)
    ids = torch.stack([torch.randperm(E, generator=draw)[:k] for _ in range(N)])
    weights = [torch.randn(shape, generator=draw) / 4 for shape in ((E, 2 * F, H), (E, H, F))]
    counts, dy = torch.bincount(ids.flatten(), minlength=E), torch.randn(N, H, generator=draw)
    found = []
    for mixer in (rounded_mix, mix_experts):
        leaves = [t.clone().requires_grad_() for t in (x, mix, *weights)]
        y = mixer(leaves[0], ids, leaves[1], counts, *leaves[2:])
        found.append([y.detach(), *torch.autograd.grad(y, leaves, dy)])
    for name, ours, exact in zip(("y", "dx", "dmix", "dgate_up", "ddown"), *found, strict=True):
        error = float((ours - exact).norm() / exact.norm())
        assert 1e-4 < error < 1e-2, (name, error)  # a bfloat16 operand is off by 2^-9 at most, by 0.0017 on average


def test_the_bound_on_a_gap_is_the_noise_floor_where_that_is_wider() -> None:
    runs = {
        "bfloat16, seed 0": {"last": 2.0}, "fp8, seed 0": {"last": 2.02},
        "bfloat16, seed 1": {"last": 4.0}, "fp8, seed 1": {"last": 4.0},
    }  # fmt: skip
    found = fp8_loss_gap.compare(runs, ["fp8"], 2, "last")
    assert found["fp8"]["by_seed_percent"] == pytest.approx([1.0, 0.0])
    assert found["fp8"]["gap_percent"] == pytest.approx(0.5)
    assert (found["fp8"]["bound_percent"], found["fp8"]["held"]) == (0.25, False)
    runs |= {"bfloat16, seed 0, perturbed 1": {"last": 2.04}}
    found = fp8_loss_gap.compare(runs, ["fp8"], 2, "last")
    sigma = 100 * 2**0.5 * (0.02 * 2**0.5) / 2.02  # of a difference; two values 0.04 apart deviate by 0.02 * sqrt(2)
    assert found["sigma_percent"] == pytest.approx(sigma)
    assert found["fp8"]["bound_percent"] == pytest.approx(2 * sigma / 2**0.5)
    assert found["fp8"]["held"]


def test_pairs_of_arms_come_before_the_noise_floor() -> None:
    tasks = fp8_loss_gap.tasks_of(["fp8"], 2, 1, 10)
    assert list(tasks) == [
        "bfloat16, seed 0", "fp8, seed 0", "bfloat16, seed 1", "fp8, seed 1", "bfloat16, seed 0, perturbed 1",
    ]  # fmt: skip
    assert tasks["bfloat16, seed 0, perturbed 1"] == ("bfloat16", 0, 10, 1, None)


@pytest.mark.parametrize("steps", [3, 50, 127])
def test_a_curve_keeps_the_mean_of_the_run(steps: int) -> None:
    losses = [float(i) for i in range(steps)]
    points = fp8_loss_gap.curve(losses)
    assert len(points) == min(steps, 50)
    assert points == sorted(points)
    if steps <= 50:
        assert points == losses


def test_what_was_lost_of_the_masters_improvement_is_a_share_of_it() -> None:
    def of(after: float, unchanged: float) -> dict[str, float]:
        return {"before": 2.0, "after": after, "unchanged_percent": unchanged, "bytes_per_parameter": 4.0}

    runs = {f"{small_state.BASE}, seed 0": of(1.9, 10.0), "to nearest, FP8 moments, seed 0": of(1.975, 80.0)}
    found = small_state.compare(runs, [small_state.BASE, "to nearest, FP8 moments"], 1)
    assert found[small_state.BASE]["gap_percent"] == 0
    nearest = found["to nearest, FP8 moments"]
    assert nearest["improvement_lost_percent"] == pytest.approx(75)
    assert nearest["gap_percent"] == pytest.approx(100 * 0.075 / 1.9)
    assert nearest["unchanged_percent"] == 80.0
    assert not nearest["held"]


def test_a_float32_model_computes_with_the_bfloat16_weights_that_are_kept() -> None:
    computing, kept = (
        init_weights(CausalLM(ModelConfig(**preset("tiny")["model"])), torch.Generator().manual_seed(0))
        for _ in range(2)
    )
    kept.bfloat16()
    before = [p.detach().clone() for p in kept.parameters()]
    optimizer = small_state.Through(computing, kept, OptimConfig(weights="bfloat16", moments="fp8", lr=0.01))
    for parameter in computing.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for c, k, b in zip(computing.parameters(), kept.parameters(), before, strict=True):
        assert c.dtype == torch.float32
        assert torch.equal(c, k.float())
        assert not torch.equal(k, b)
        assert c.grad is None
        assert k.grad is None


def test_small_batches_decay_a_token_as_much_and_remember_as_many() -> None:
    whole, small = (adama.recipe_of("scratch", arm, 0, 40).optim for arm in (adama.BASE, adama.SMALL))
    steps = adama.recipe_of("scratch", adama.SMALL, 0, 40).train.steps
    assert steps == 40 * 16
    assert small.warmup_steps == 16 * whole.warmup_steps
    assert small.lr == pytest.approx(whole.lr / 4)
    assert small.end_lr == pytest.approx(whole.end_lr / 4)
    assert 16 * small.lr * small.weight_decay == pytest.approx(whole.lr * whole.weight_decay)
    assert small.beta2**16 == pytest.approx(whole.beta2)
    assert 16 * small.expert_bias_update_rate == pytest.approx(whole.expert_bias_update_rate)


def test_arms_that_were_not_run_are_left_out_of_the_comparison() -> None:
    runs = {"AdamW, seed 0": {"last": 2.0}, "AdamA, seed 0": {"last": 2.02}}
    found = adama.compare(runs, "last")
    assert list(found) == ["AdamW", "AdamA"]
    assert found["AdamA"]["gap_percent"] == pytest.approx(1.0)
    assert (found["AdamW"]["held"], found["AdamA"]["held"]) == (True, False)


@pytest.mark.slow  # a tokenizer is trained
def test_microbatches_share_out_the_documents_of_a_step() -> None:
    prepared = adama.prepared_for("scratch", 0, 2)
    parts = adama.microbatches("scratch", prepared, 0)
    (whole,) = prepared.read_batches(0)
    assert len(parts) == 16
    assert sorted(torch.cat([p.tokens for p in parts]).tolist()) == sorted(whole.tokens.tolist())
    assert sum(len(p.tokens) for p in parts) <= adama.TOKENS_PER_STEP


@pytest.mark.slow  # short trainings, for each of which a tokenizer is trained
def test_each_arm_trains() -> None:
    for arm in ("bfloat16", "fp8"):
        found = fp8_loss_gap.train(arm, 0, 2)
        assert found["tokens"] == 4096
        assert (found["fp8_lost"] is None) == (arm == "bfloat16")
    assert fp8_loss_gap.train("bfloat16", 0, 2, 1)["last"] != fp8_loss_gap.train("bfloat16", 0, 2)["last"]
    base = adama.train("scratch", adama.BASE, 0, 2)["last"]
    assert adama.train("scratch", "AdamA", 0, 2)["last"] == pytest.approx(base, rel=0.02)
    trained = [adama.train("trained", arm, 0, 1) for arm in (adama.BASE, "AdamA, FP8 moments")]
    assert trained[1]["heldout"] == pytest.approx(trained[0]["heldout"], rel=1e-3)
    assert 0 < trained[0]["moved"] < 0.1
    masters, small = (small_state.run(arm, 0, 2) for arm in (small_state.BASE, "stochastic, FP8 moments"))
    assert masters["before"] == small["before"]
    assert masters["after"] == pytest.approx(small["after"], rel=1e-3)
    assert small["bytes_per_parameter"] < 4.1
