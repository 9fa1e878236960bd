"""The kernel of AdamW against the optimizer's own update."""

import pytest
import torch
from tests.ops.kernels.comparing import draw
from torch import Tensor

from ling.config.training import OptimConfig
from ling.ops.adamw import AdamWRule, Moment
from ling.ops.backend import use_backend
from ling.ops.noise import noise_key
from ling.optim.gather import gather_, share_of
from ling.optim.muon_adamw import MuonAdamW
from ling.optim.update import adamw_
from ling.testing.tolerances import Tolerance, assert_close

UPDATES = 2
CASES = [
    # weights, moments, rounding of weights
    ("bfloat16", "fp8", "stochastic"),
    ("bfloat16", "bfloat16", "stochastic"),
    ("bfloat16", "float32", "nearest"),
    ("float32", "float32", "stochastic"),
    ("float32", "fp8", "stochastic"),
]


def moments_of(state: dict[str, Tensor]) -> tuple[Moment, Moment]:
    mean, square = (moment_of(state, key) for key in ("exp_avg", "exp_avg_sq"))
    return mean, square


def moment_of(state: dict[str, Tensor], key: str) -> Moment:
    scale = state[f"{key}_scale"].view(-1) if f"{key}_scale" in state else None
    return Moment(state[key].view(-1), scale)


@pytest.mark.parametrize(("weights", "moments", "rounding"), CASES)
def test_an_update_is_that_of_the_optimizer_code_for_code(weights: str, moments: str, rounding: str) -> None:
    """From the same state each time: one code on an edge would otherwise lead to others."""
    optim = OptimConfig(
        lr=1e-2, weights=weights, moments=moments, weight_rounding=rounding, rounding_seed=3, weight_decay=0.1
    )
    parameter = draw(0, 31, 163).to(getattr(torch, weights)).requires_grad_()  # 5,053: the last block is not whole
    optimizer = MuonAdamW([{"params": [parameter], "weight_decay": 0.1}], optim, names={parameter: "w"})
    rule = AdamWRule(1e-2, optim.beta1, optim.beta2, optim.eps, 0.1, rounding == "stochastic")
    for update in range(UPDATES):
        state = optimizer.state[parameter]
        mine = {key: value.clone() for key, value in state.items()} | {"weight": parameter.detach().clone()}
        gradient = draw(1 + update, 31, 163) * torch.logspace(-6, 2, 31)[:, None]
        gradient[5] = 0
        parameter.grad = gradient.to(parameter.dtype)
        with use_backend("reference"):
            optimizer.step()
        key = noise_key(3, update, "w")
        with use_backend("triton"):
            adamw_(mine["weight"].view(-1), parameter.grad.view(-1), *moments_of(mine), mine["step"], key, rule)
        for key, expected in {**optimizer.state[parameter], "weight": parameter.detach()}.items():
            if key == "step":
                continue
            got = mine[key]
            if got.dtype == torch.float32 and not key.endswith("_scale"):
                assert_close(got, expected, Tolerance(1e-9, 3e-6, "float32 in another order"), key)
            else:
                same = (got.float() == expected.float()).float().mean()  # a half, were the noise another
                assert same > 0.998, f"{key}: {1 - same:.2%} differ in update {update}"


@pytest.mark.parametrize("moments", ["fp8", "bfloat16", "float32"])
@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_gathering_a_gradient_is_that_of_the_optimizer_code_for_code(moments: str, method: str) -> None:
    optim = OptimConfig(method=method, moments=moments, weights="bfloat16", rounding_seed=3)
    parameter = draw(0, 31, 163).bfloat16().requires_grad_()
    optimizer = MuonAdamW([{"params": [parameter], "method": method}], optim, names={parameter: "w"})
    for microbatch in range(UPDATES):
        state = optimizer.state[parameter]
        mine = {key: value.clone() for key, value in state.items()}
        parameter.grad = (draw(1 + microbatch, 31, 163) * torch.logspace(-6, 2, 31)[:, None]).bfloat16()
        with use_backend("reference"):
            optimizer.gather_([parameter], microbatch)
        key, gradient = noise_key(3, 0, f"w@{microbatch}"), parameter.grad.view(-1)
        with use_backend("triton"):
            if method == "adamw":
                gather_(gradient, *moments_of(mine), key, share_of(optim.beta1), share_of(optim.beta2))
            else:
                gather_(gradient, moment_of(mine, "momentum"), None, key, 1 / optim.muon.momentum, 0.0)
        for key_, expected in state.items():
            if mine[key_].dtype == torch.float32 and not key_.endswith("_scale"):
                assert_close(mine[key_], expected, Tolerance(1e-9, 3e-6, "float32 in another order"), key_)
            else:
                same = (mine[key_].float() == expected.float()).float().mean()
                assert same > 0.998, f"{key_}: {1 - same:.2%} differ after microbatch {microbatch}"


@pytest.mark.parametrize("moments", ["fp8", "bfloat16"])
def test_a_part_of_a_parameter_is_rounded_by_the_noise_of_its_place_in_the_whole(moments: str) -> None:
    optim = OptimConfig(weights="bfloat16", moments=moments, rounding_seed=3)
    rule, key, cut = AdamWRule(1e-2, 0.9, 0.95, 1e-8, 0.1, True), noise_key(3, 0, "w"), 21
    whole, gradient = draw(0, 40, 256).bfloat16(), draw(1, 40, 256).bfloat16()

    def update(backend: str, first: int) -> list[Tensor]:
        weight = whole[first:].clone().requires_grad_()
        (state,) = MuonAdamW([{"params": [weight]}], optim).state.values()
        weight, offset = weight.detach(), first * 256
        with use_backend(backend):
            gather_(gradient[first:].view(-1), *moments_of(state), key, 0.1, 0.05, offset)
            adamw_(weight.view(-1), gradient[first:].view(-1), *moments_of(state), state["step"], key + 1, rule, offset)
        return [weight, *(state[key].float() for key in ("exp_avg", "exp_avg_sq"))]

    expected = update("reference", 0)
    for got, all_of_it in zip(update("triton", cut), expected, strict=True):
        same = (got == all_of_it[cut:]).float().mean()  # a half, were the noise another
        assert same > 0.95, same  # and not more: a code on an edge leads to others
    for got, all_of_it in zip(update("reference", cut), expected, strict=True):
        assert torch.equal(got, all_of_it[cut:])
