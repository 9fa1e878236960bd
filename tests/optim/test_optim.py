"""The expert-bias rule, parameter groups, the schedule."""

import pytest
import torch

from ling.config.training import OptimConfig
from ling.errors import ConfigError
from ling.optim.build import build_optimizer
from ling.optim.expert_bias import step_bias_, update_expert_biases
from ling.optim.schedule import lr_at
from ling.testing.models import tiny_model


def test_the_worked_example_of_the_specification() -> None:
    """spec model.md 6: counts [10, 0, 4, 4, 2] with u = 1e-3."""
    bias = torch.zeros(5)
    step_bias_(bias, torch.tensor([10, 0, 4, 4, 2]), 1e-3)
    assert bias.tolist() == pytest.approx([-1.2e-3, 0.8e-3, -0.2e-3, -0.2e-3, 0.8e-3])


def test_the_mean_of_the_bias_stays_where_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    bias = torch.randn(64, generator=generator)
    before = bias.mean().item()
    for _ in range(100):
        step_bias_(bias, torch.randint(0, 50, (64,), generator=generator), 1e-2)
    assert bias.mean().item() == pytest.approx(before, abs=1e-5)


def test_equal_loads_change_nothing() -> None:
    bias = torch.ones(4)
    step_bias_(bias, torch.full((4,), 7), 1.0)
    assert bias.tolist() == [1.0] * 4


def test_only_layers_with_counts_move_and_a_rate_of_zero_freezes_all() -> None:
    model = tiny_model()
    biases = {i: model.model.layers[i].mlp.gate.expert_bias.clone() for i in (1, 2, 3)}
    counts = {1: torch.arange(16)}
    update_expert_biases(model, counts, 0.0)
    update_expert_biases(model, counts, 0.1)
    moved = {i for i, before in biases.items() if not torch.equal(model.model.layers[i].mlp.gate.expert_bias, before)}
    assert moved == {1}


def test_norms_and_biases_do_not_decay_and_every_parameter_is_in_one_group() -> None:
    model = tiny_model(use_bias=True, use_qkv_bias=True)
    decayed, plain = build_optimizer(model, OptimConfig(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all("norm" in names[id(p)] or names[id(p)].endswith("bias") for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_the_learning_rate_warms_up_and_stays() -> None:
    optim = OptimConfig(lr=1.0, warmup_steps=4)
    assert [lr_at(step, optim, 6) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert lr_at(0, OptimConfig(lr=1.0, warmup_steps=0), 1) == 1.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": "linear"}, [0.5, 1.0, 0.775, 0.55, 0.325, 0.1]),
        ({"schedule": "cosine"}, [0.5, 1.0, 0.8682, 0.55, 0.2318, 0.1]),
        ({"schedule": "wsd", "decay_steps": 2}, [0.5, 1.0, 1.0, 1.0, 0.55, 0.1]),
        ({"schedule": "wsd", "decay_steps": 2, "decay": "1-sqrt"}, [0.5, 1.0, 1.0, 1.0, 0.3636, 0.1]),
        ({"schedule": "wsd", "decay_steps": 6, "decay": "cosine"}, [0.5, 1.0, 0.55, 0.325, 0.1603, 0.1]),
    ],
)
def test_a_rate_falls_to_its_end_at_the_last_step(changes: dict, expected: list[float]) -> None:
    optim = OptimConfig(lr=1.0, warmup_steps=2, end_lr=0.1, **changes)
    assert [lr_at(step, optim, 6) for step in range(6)] == pytest.approx(expected, abs=1e-4)


def test_the_published_schedule() -> None:
    """spec training.md 2: 3e-5 to 3e-6, a cosine over 2,000 steps without warm-up."""
    optim = OptimConfig(lr=3e-5, end_lr=3e-6, warmup_steps=0, schedule="cosine")
    rates = [lr_at(step, optim, 2000) for step in (0, 999, 1999)]
    assert rates == pytest.approx([3e-5, 1.65e-5, 3e-6], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"end_lr": 1.0, "lr": 0.5}, "optim.end_lr 1 is above optim.lr 0.5"),
        ({"schedule": "wsd"}, "decay_steps and optim.schedule=wsd go together"),
        ({"decay_steps": 5}, "decay_steps and optim.schedule=wsd go together"),
    ],
)
def test_a_schedule_that_contradicts_itself_is_refused(changes: dict, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        OptimConfig(**changes)
