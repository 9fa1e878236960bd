"""Weights in two bytes and moments in one: what an update does, what it holds, and what it can be resumed from."""

from pathlib import Path

import pytest
import torch
from tests.optim.test_muon_adamw import assert_same, backward, step

from ling.checkpoint.dcp import DcpSource, save_dcp
from ling.config.optimizer import MuonConfig
from ling.config.training import OptimConfig
from ling.model import CausalLM
from ling.optim import stored
from ling.optim.build import build_optimizer, state_tensors
from ling.optim.interchange import convert_, stored_as_wanted
from ling.optim.moments import SCALE, Kind, format_of
from ling.optim.muon import MuonRule
from ling.optim.muon_adamw import MuonAdamW
from ling.optim.sharding import through_full_matrix
from ling.parallel.pipeline import Elsewhere
from ling.testing.models import tiny_model

SMALL = OptimConfig(lr=1e-2, weights="bfloat16", moments="fp8")
OTHERS = [("adamw", "bfloat16"), ("adamw", "dynamic8"), ("muon", "bfloat16"), ("muon", "fp8"), ("muon", "dynamic8")]


def model_and_optimizer(optim: OptimConfig) -> tuple[CausalLM, MuonAdamW]:
    model = tiny_model().to(getattr(torch, optim.weights))
    return model, build_optimizer(model, optim)


def values(model: CausalLM) -> torch.Tensor:
    return torch.cat([p.detach().float().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("method", "moments"),
    [("adamw", "fp8"), *(pytest.param(m, f, marks=pytest.mark.slow) for m, f in OTHERS)],
)
def test_updates_are_those_of_float32_moments_up_to_their_rounding(moments: str, method: str) -> None:
    """The same gradients, so that nothing but the rounding of moments differs."""
    models = [tiny_model(), tiny_model()]
    optimizers = [
        build_optimizer(model, OptimConfig(lr=1e-3, method=method, moments=form, weight_decay=0.0))
        for model, form in zip(models, (moments, "float32"), strict=True)
    ]
    before = values(models[1])
    for i in range(8):
        backward(models[1], i)
        for mine, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            mine.grad = other.grad.clone()
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.step()
            model.zero_grad()
    moved = values(models[1]) - before
    error = (values(models[0]) - values(models[1])).norm() / moved.norm()
    assert error < (0.02 if moments == "bfloat16" else 0.12), error
    assert error > 0


def test_vectors_and_small_matrices_keep_float32_moments() -> None:
    model, optimizer = model_and_optimizer(SMALL)
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        is_small = parameter.dim() < 2 or parameter.numel() < 4096
        assert state["exp_avg"].dtype == (torch.float32 if is_small else torch.float8_e4m3fn), name
        assert ("exp_avg_scale" in state) == (not is_small)


def test_routers_stay_float32_and_everything_else_is_bfloat16() -> None:
    model, optimizer = model_and_optimizer(SMALL)
    step(model, optimizer)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if name.endswith("gate.weight") else torch.bfloat16), name


@pytest.mark.slow
@pytest.mark.parametrize("optim", [SMALL, OptimConfig(lr=1e-2, method="muon", weights="bfloat16", moments="fp8")])
def test_the_loss_falls(optim: OptimConfig) -> None:
    model, optimizer = model_and_optimizer(optim)
    losses = [step(model, optimizer) for _ in range(8)]
    assert losses[-1] < losses[0] - 0.7, losses


def small_updates(rounding: str, steps: int = 40) -> tuple[float, float]:
    """Return the mean move over the one asked for, and the share of weights that never moved."""
    weight = torch.nn.Parameter(torch.full((64, 256), 1.0, dtype=torch.bfloat16))
    optim = OptimConfig(lr=1e-5, weights="bfloat16", weight_rounding=rounding, moments="fp8")
    optimizer = MuonAdamW([{"params": [weight], "weight_decay": 0.0}], optim)
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    moved = 1 - weight.detach().double()
    return float(moved.mean() / (1e-5 * steps)), float((moved == 0).double().mean())


def test_updates_far_below_a_step_of_bfloat16_arrive_on_average_and_are_lost_to_nearest() -> None:
    """40 updates of 1e-5 beside steps of 2^-8 = 3.9e-3 below 1: one weight in ten moves, by one step."""
    move, still = small_updates("stochastic")
    assert move == pytest.approx(1.0, abs=0.1)
    assert 0.8 < still < 0.95
    assert small_updates("nearest") == (0.0, 1.0)


def test_replicas_round_alike_and_seeds_steps_and_names_do_not() -> None:
    def run(seed: int = 0, name: str = "w", updates: int = 0) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 16384, dtype=torch.bfloat16).view(64, 256))
        optimizer = MuonAdamW(
            [{"params": [weight], "weight_decay": 0.0}],
            OptimConfig(lr=1e-3, weights="bfloat16", rounding_seed=seed),
            names={weight: name},
        )
        optimizer.updates = updates
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        return weight.detach()

    assert torch.equal(run(), run())
    assert not any(torch.equal(run(), other) for other in (run(seed=1), run(name="v"), run(updates=1)))


@pytest.mark.parametrize("moments", ["bfloat16", "fp8", "dynamic8"])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, moments: str) -> None:
    found = []
    for chunk in (stored.CHUNK, 512):
        monkeypatch.setattr("ling.optim.update.CHUNK", chunk)
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 5000, dtype=torch.bfloat16).view(50, 100))
        optimizer = MuonAdamW([{"params": [weight]}], OptimConfig(lr=1e-2, weights="bfloat16", moments=moments))
        for i in range(3):
            weight.grad = torch.randn(50, 100, generator=torch.Generator().manual_seed(i)).bfloat16()
            optimizer.step()
        found.append(weight.detach())
    assert torch.equal(*found)
    assert stored.CHUNK <= 16 << 20


def test_experts_a_few_at_a_time_change_nothing() -> None:
    models = []
    for mib in (256, 1):
        weight = torch.nn.Parameter(torch.randn(24, 96, 64, generator=torch.Generator().manual_seed(0)).bfloat16())
        optim = OptimConfig(lr=1e-2, weights="bfloat16", moments="fp8", muon=MuonConfig(chunk_mib=mib))
        optimizer = MuonAdamW(
            [{"params": [weight], "method": "muon", "weight_decay": 0.1}], optim, parts={weight: (48, 48)}
        )
        for i in range(2):
            weight.grad = torch.randn(24, 96, 64, generator=torch.Generator().manual_seed(i)).bfloat16()
            optimizer.step()
        models.append(weight.detach())
    assert torch.equal(*models)


def test_the_padding_row_does_not_decay() -> None:
    model, optimizer = model_and_optimizer(SMALL)
    embedding = model.model.word_embeddings
    with torch.no_grad():
        embedding.weight[embedding.padding_idx] = 1.0
    step(model, optimizer)
    assert bool((embedding.weight[embedding.padding_idx] == 1).all())


def save(directory: Path, model: CausalLM, optimizer: MuonAdamW) -> DcpSource:
    save_dcp(directory, {**dict(model.named_parameters()), **state_tensors(model, optimizer)}, {})
    return DcpSource(directory)


def load(source: DcpSource, optim: OptimConfig, updates: int) -> tuple[CausalLM, MuonAdamW]:
    model, optimizer = model_and_optimizer(optim)
    source.load_into({**dict(model.named_parameters()), **stored_as_wanted(model, optimizer, source)})
    convert_(model, optimizer, source)
    optimizer.updates = updates
    return model, optimizer


@pytest.mark.parametrize(
    "optim",
    [
        pytest.param(SMALL, marks=pytest.mark.slow),
        pytest.param(OptimConfig(lr=1e-2, weights="bfloat16", moments="dynamic8"), marks=pytest.mark.slow),
        OptimConfig(lr=1e-2, method="muon", weights="bfloat16", moments="fp8"),
        pytest.param(
            OptimConfig(lr=1e-2, method="muon", weights="bfloat16", moments="bfloat16"), marks=pytest.mark.slow
        ),
    ],
    ids=["fp8", "dynamic8", "muon fp8", "muon bfloat16"],
)
def test_a_run_that_is_resumed_goes_on_with_the_same_bits(tmp_path: Path, optim: OptimConfig) -> None:
    model, optimizer = model_and_optimizer(optim)
    for i in range(2):
        step(model, optimizer, i)
    source = save(tmp_path / "at_2", model, optimizer)
    other, fresh = load(source, optim, updates=2)
    for i in range(2, 4):
        step(model, optimizer, i)
        step(other, fresh, i)
    assert_same(model, other)


CHANGES = {
    "plain to small": (OptimConfig(lr=1e-2), SMALL),
    "small to plain": (SMALL, OptimConfig(lr=1e-2)),
    "fp8 to the published map": (SMALL, OptimConfig(lr=1e-2, weights="bfloat16", moments="dynamic8")),
    "the published map to bfloat16": (
        OptimConfig(lr=1e-2, moments="dynamic8"),
        OptimConfig(lr=1e-2, moments="bfloat16"),
    ),
    "masters to none": (OptimConfig(lr=1e-2, weights="bfloat16", master_weights=True), OptimConfig(lr=1e-2)),
    "none to masters": (OptimConfig(lr=1e-2), OptimConfig(lr=1e-2, weights="bfloat16", master_weights=True)),
    "muon": (OptimConfig(lr=1e-2, method="muon"), OptimConfig(lr=1e-2, method="muon", moments="fp8")),
}


@pytest.mark.parametrize(
    "change", ["plain to small", *(pytest.param(c, marks=pytest.mark.slow) for c in CHANGES if c != "plain to small")]
)
def test_a_run_saved_with_one_goes_on_with_another(tmp_path: Path, change: str) -> None:
    first, second = CHANGES[change]
    model, optimizer = model_and_optimizer(first)
    for i in range(3):
        step(model, optimizer, i)
    source = save(tmp_path / "at_3", model, optimizer)
    other, fresh = load(source, second, updates=3)
    step(model, optimizer, 3)
    before = values(other)
    step(other, fresh, 3)
    error = (values(other) - values(model)).norm() / (before - values(model)).norm()
    assert error < 0.5, error  # of the update; with moments of zero it is above 1
    for parameter, state in fresh.state.items():
        if "step" in state and parameter.dim() > 1:
            assert state["step"] == 4


def test_scales_in_one_row_as_checkpoints_once_had_them_are_read(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer(SMALL)
    step(model, optimizer)
    state = state_tensors(model, optimizer)
    assert any(t.dim() == 2 and len(t) > 1 for name, t in state.items() if name.endswith("_scale"))
    flat = {name: t.reshape(-1) if name.endswith("_scale") else t for name, t in state.items()}
    save_dcp(tmp_path / "old", {**dict(model.named_parameters()), **flat}, {})
    other, fresh = load(DcpSource(tmp_path / "old"), SMALL, updates=1)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        for kind, key in (("mean", "exp_avg"), ("square", "exp_avg_sq")):
            values = [moment_values(o, p, key, kind) for o, p in ((optimizer, mine), (fresh, theirs))]
            assert torch.equal(*values)


def moment_values(optimizer: MuonAdamW, parameter: torch.Tensor, key: str, kind: Kind) -> torch.Tensor:
    state = optimizer.state[parameter]
    scale = state[key + SCALE].view(-1) if key + SCALE in state else None
    return format_of(state[key].dtype, kind).decode(state[key].view(-1), scale)


def test_a_float32_run_takes_the_masters_and_not_what_was_rounded_from_them(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer(CHANGES["masters to none"][0])
    step(model, optimizer)
    other, _ = load(save(tmp_path / "at_1", model, optimizer), OptimConfig(lr=1e-2), updates=1)
    assert torch.equal(other.lm_head.weight, optimizer.state[model.lm_head.weight]["master"])
    assert not torch.equal(other.lm_head.weight, model.lm_head.weight.float())


def test_a_stage_takes_the_masters_of_its_own_layers(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer(CHANGES["masters to none"][0])
    step(model, optimizer)
    source = save(tmp_path / "at_1", model, optimizer)
    stage = tiny_model()
    stage.model.layers[0] = Elsewhere(torch.device("cpu"))
    convert_(stage, build_optimizer(stage, OptimConfig(lr=1e-2)), source)
    assert torch.equal(stage.lm_head.weight, optimizer.state[model.lm_head.weight]["master"])


def test_no_piece_of_an_update_is_larger_than_sixteen_million_elements() -> None:
    """Ling-mini's experts, 2 million elements each: eight at a time, though the bound of memory allows more."""
    rule = MuonRule(MuonConfig(chunk_mib=4096), through_full_matrix)
    pieces = list(rule._pieces(torch.empty(256, 1024, 2048, device="meta"), (512, 512)))
    assert [(p.start, p.stop) for p in pieces[:2]] == [(0, 8), (8, 16)]
    assert stored.CHUNK == 8 * 1024 * 2048
