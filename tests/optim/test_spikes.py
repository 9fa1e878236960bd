"""Which steps are skipped, and what is left of them."""

import json
import math
import random

import pytest
import torch

from ling.config.optimizer import SkipConfig
from ling.config.training import OptimConfig
from ling.errors import CheckpointError, ConfigError, TrainingError
from ling.optim.build import build_optimizer, state_tensors
from ling.optim.spikes import SpikeGuard
from ling.testing.models import tiny_model


def guard_with_history(rule: str, steps: int = 60, **changes: int) -> SpikeGuard:
    """A loss near 3 and a gradient norm near 1 for some steps, none of them a spike."""
    noise = random.Random(0)
    guard = SpikeGuard(SkipConfig(rule=rule, window=64, at_least=20, **changes))  # type: ignore[arg-type]
    for i in range(steps):
        assert guard.reason_to_skip(i, 3 + noise.gauss(0, 0.05), 1 + noise.uniform(-0.2, 0.2), 1e-3) is None
    return guard


@pytest.mark.parametrize("rule", ["mad", "sigma"])
@pytest.mark.parametrize(("loss", "norm", "said"), [(4.0, 1.0, "loss 4 is above 3"), (3.0, 9.0, "gradient norm 9 is")])
def test_a_spike_of_either_number_is_skipped(rule: str, loss: float, norm: float, said: str) -> None:
    guard = guard_with_history(rule)
    assert said in (guard.reason_to_skip(60, loss, norm, 1e-3) or "")
    assert guard.reason_to_skip(61, 3.0, 1.0, 1e-3) is None
    assert guard.skipped == 1


@pytest.mark.parametrize("rule", ["mad", "sigma"])
def test_falling_is_no_spike(rule: str) -> None:
    assert guard_with_history(rule).reason_to_skip(60, 0.5, 0.01, 1e-3) is None


def test_nothing_is_skipped_by_default_or_before_there_is_a_history() -> None:
    assert guard_with_history("off").reason_to_skip(60, 1e9, 1e9, 1e-3) is None
    assert guard_with_history("mad", steps=19).reason_to_skip(19, 1e9, 1e9, 1e-3) is None
    assert guard_with_history("mad", steps=20).reason_to_skip(20, 1e9, 1e9, 1e-3) is not None


def test_one_spike_does_not_hide_the_next_from_the_median() -> None:
    """The mean and the standard deviation do let it through: why mad is what the guide recommends."""
    reasons = {}
    for rule in ("mad", "sigma"):
        guard = guard_with_history(rule)
        guard.reason_to_skip(60, 1e6, 1.0, 1e-3)
        reasons[rule] = guard.reason_to_skip(61, 30.0, 1.0, 1e-3)
    assert reasons["mad"] is not None
    assert reasons["sigma"] is None


def test_a_lasting_change_of_level_is_accepted_within_the_window() -> None:
    guard = guard_with_history("mad")
    skipped = [guard.reason_to_skip(60 + i, 5.0, 1.0, 1e-3) is not None for i in range(64)]
    assert skipped[0]
    assert sum(skipped) <= 33
    assert not any(skipped[40:])


def test_numbers_that_never_vary_make_no_spike_of_a_rounding_error() -> None:
    guard = SpikeGuard(SkipConfig(rule="mad", window=8, at_least=4))
    for i in range(8):
        guard.reason_to_skip(i, 2.0, 1.0, 1e-3)
    assert guard.reason_to_skip(8, 2.0 + 1e-6, 1.0, 1e-3) is None
    assert guard.reason_to_skip(9, 2.1, 1.0, 1e-3) is not None


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (3.0, math.inf)])
def test_steps_that_are_not_finite_are_skipped_up_to_the_limit(loss: float, norm: float) -> None:
    guard = guard_with_history("off", nonfinite_steps=2)
    for _ in range(2):  # a good step between them starts the count anew
        assert guard.reason_to_skip(60, loss, norm, 1e-3) is not None
        assert guard.reason_to_skip(61, loss, norm, 1e-3) is not None
        assert guard.reason_to_skip(62, 3.0, 1.0, 1e-3) is None
    guard.reason_to_skip(63, loss, norm, 1e-3)
    guard.reason_to_skip(64, loss, norm, 1e-3)
    with pytest.raises(TrainingError, match=r"at step 66 .*\(3 such steps in a row\); begin again with optim.lr below"):
        guard.reason_to_skip(65, loss, norm, 1e-3)
    assert guard.skipped == 6


def test_the_first_step_that_is_not_finite_ends_a_run_by_default() -> None:
    line = "training diverges: at step 8 the loss is nan and the gradient norm 1; begin again with optim.lr below 0.001"
    with pytest.raises(TrainingError) as caught:
        SpikeGuard(SkipConfig()).reason_to_skip(7, math.nan, 1.0, 1e-3)
    assert str(caught.value) == line


def test_a_guard_that_is_restored_decides_alike() -> None:
    guard, other = guard_with_history("mad", nonfinite_steps=3), SpikeGuard(SkipConfig(rule="mad", at_least=20))
    guard.reason_to_skip(60, math.nan, 1.0, 1e-3)
    other.restore(json.loads(json.dumps(guard.state())), "here")
    assert other.state() == guard.state()
    assert other.skipped == 1
    for loss in (3.1, 3.3, 3.6):
        assert other._spike("loss", loss) == guard._spike("loss", loss)


@pytest.mark.parametrize(
    "damage", [{"history": None}, {"skipped": -1}, {"nonfinite_in_row": "2"}, {"history": {"loss": [1.0]}}]
)
def test_a_damaged_state_is_refused(damage: dict[str, object]) -> None:
    state = guard_with_history("mad").state() | damage
    with pytest.raises(CheckpointError, match=r"^step_5/facts.json does not hold the losses"):
        SpikeGuard(SkipConfig()).restore(state, "step_5/facts.json")


def test_a_skipped_step_touches_neither_weights_nor_moments() -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, OptimConfig(method="muon"))
    guard = guard_with_history("mad")
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)
    before = {name: value.clone() for name, value in (model.state_dict() | state_tensors(model, optimizer)).items()}
    if guard.reason_to_skip(60, 3.0, 1e3, 1e-3) is None:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    after = model.state_dict() | state_tensors(model, optimizer)
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("changes", [{"deviations": 0.0}, {"at_least": 1}, {"at_least": 200}, {"nonfinite_steps": -1}])
def test_a_rule_that_cannot_be_meant_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"optim\.skip\."):
        SkipConfig(**changes)  # type: ignore[arg-type]


def test_a_norm_that_is_known_too_late_is_neither_judged_nor_remembered_unless_it_is_not_finite() -> None:
    guard = guard_with_history("mad")
    before = guard.state()["history"]["gradient norm"]
    assert guard.reason_to_skip(60, 3.0, 99.0, 1e-3, by_norm=False) is None
    assert guard.state()["history"]["gradient norm"] == before
    assert "loss 9 is above" in (guard.spike_of(9.0) or "")
    assert "loss 9 is above" in (guard.reason_to_skip(61, 9.0, 1.0, 1e-3, by_norm=False) or "")
    with pytest.raises(TrainingError, match="the gradient norm inf"):
        guard.reason_to_skip(62, 3.0, math.inf, 1e-3, by_norm=False)
