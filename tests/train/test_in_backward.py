"""Updates during backward: the bits of the plain step, no more gradients than one layer's, and what a step gives up."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ling.checkpoint.dcp import DcpSource, save_dcp
from ling.config.recipe import Recipe, load_recipe
from ling.errors import ConfigError, TrainingError
from ling.model import CausalLM, init_weights
from ling.model.fp8 import Fp8Layers
from ling.optim.build import build_optimizer, state_tensors
from ling.optim.muon_adamw import MuonAdamW
from ling.parallel.ranks import Ranks
from ling.scaling.layout import Layout
from ling.testing.models import tiny_model
from ling.testing.tolerances import SUM_ORDER, assert_close
from ling.train.batch import TrainBatch, build_batch
from ling.train.in_backward import InBackward, layers_of
from ling.train.loss import LossCounts, compute_loss
from ling.train.state import TrainState
from ling.train.step import StepResult, train_step

PLAIN = ["optim.lr=0.01", "optim.warmup_steps=0", "optim.clip_grad_norm=0"]
RELEASED = [*PLAIN, "optim.in_backward=true"]
SMALL = ["train.precision=bfloat16", "optim.weights=bfloat16", "optim.moments=fp8"]


def recipe(*changes: str) -> Recipe:
    return load_recipe(preset_name="tiny", overrides=changes)


def batches(seed: int, microbatches: int = 1) -> list[TrainBatch]:
    draw = torch.Generator().manual_seed(seed)
    documents = torch.randint(10, 90, (microbatches, 2, 16), generator=draw).tolist()
    return [build_batch(two, [[True] * 16] * 2, 1) for two in documents]


class Run:
    """A model that is trained by a recipe, without a loop around it."""

    def __init__(self, of: Recipe, ranks: Ranks | None = None) -> None:
        self.recipe, self.ranks = of, ranks
        self.model = init_weights(CausalLM(of.model), torch.Generator().manual_seed(0))
        self.model.to(getattr(torch, of.optim.weights))
        self.state = TrainState(self.model, of.optim)
        self.fp8 = Fp8Layers(self.model, of.train.fp8) if of.train.precision == "fp8" else None

    def step(self, number: int, microbatches: Sequence[TrainBatch] | None = None) -> StepResult:
        s = self.state
        found = batches(number) if microbatches is None else microbatches
        return train_step(
            self.model, s.optimizer, found, self.recipe, number, self.ranks, s.guard, s.frozen_biases, s.in_backward
        )

    def tensors(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.state.tensors().items()}


def assert_same_bits(one: Run, other: Run) -> None:
    theirs = other.tensors()
    different = [name for name, value in one.tensors().items() if not torch.equal(value, theirs[name])]
    assert not different, different


STATES = {
    "float32": [],
    "small": SMALL,
    "masters": ["train.precision=bfloat16", "optim.weights=bfloat16", "optim.master_weights=true"],
    "muon": ["optim.method=muon", *SMALL],
    "muon float32": ["optim.method=muon"],
    "fp8": ["train.precision=fp8", *SMALL[1:]],
    "frozen": ["optim.freeze=[embeddings,'model.layers.1.*']"],
}
QUICK = ("float32", "small")


@pytest.mark.parametrize("states", [s if s in QUICK else pytest.param(s, marks=pytest.mark.slow) for s in STATES])
def test_one_microbatch_without_clipping_gives_the_bits_of_the_plain_step(states: str) -> None:
    runs = [Run(recipe(*way, *STATES[states])) for way in (PLAIN, RELEASED)]
    for number in range(2):
        plain, released = (run.step(number) for run in runs)
        assert released.losses.total == plain.losses.total
        assert released.grad_norm.item() == pytest.approx(plain.grad_norm.item(), rel=5e-3)  # bfloat16 there
    assert_same_bits(*runs)
    assert runs[0].state.optimizer.updates == runs[1].state.optimizer.updates == 2


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("fp8", marks=pytest.mark.slow)])
def test_blocks_that_run_again_in_backward_are_updated_after_that(precision: str) -> None:
    of = recipe(*RELEASED, *SMALL, f"train.precision={precision}", "parallel.recompute=full")
    runs = [Run(of), Run(of, Ranks(Layout(recompute="full")))]
    for run in runs:
        run.step(0)
    assert_same_bits(*runs)


def test_no_more_gradients_are_there_than_one_layers() -> None:
    run = Run(recipe(*PLAIN, *SMALL))
    layers = layers_of(run.model)
    assert [layer.name for layer in layers] == [
        "model.word_embeddings", *(f"model.layers.{i}" for i in range(len(run.model.model.layers))), "model.norm",
        "lm_head",
    ]  # fmt: skip
    most = 0

    def look(_: Tensor) -> None:
        nonlocal most
        held = {p.grad.untyped_storage().data_ptr(): p.grad.untyped_storage() for p in parameters if p.grad is not None}
        most = max(most, sum(storage.nbytes() for storage in held.values()))

    parameters = list(run.model.parameters())
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(look)
    run.state.in_backward = InBackward(run.model, run.state.optimizer, recipe(*RELEASED, *SMALL).optim)
    sizes = {layer.name: sum(p.nbytes for p in layer.parameters) for layer in layers}
    for microbatches in (1, 3):
        run.step(0, batches(0, microbatches))
        assert 0 < most <= max(sizes.values()), (most, sizes)
        assert most < 0.5 * sum(sizes.values())
    assert all(p.grad is None for p in parameters)


def microbatch_gradients(run: Run, found: Sequence[TrainBatch]) -> list[dict[str, Tensor]]:
    """Return each microbatch's part of the step's gradient, with today's weights."""
    gradients = []
    for batch in found:
        output = run.model(batch.tokens, batch.positions, batch.attention)
        loss = compute_loss(
            run.model, output, batch.labels, batch.mtp_labels, counts=LossCounts.of(found),
            router_z_loss=run.recipe.optim.router_z_loss,
        )  # fmt: skip
        names, parameters = zip(*run.model.named_parameters(), strict=True)
        gradients.append(dict(zip(names, torch.autograd.grad(loss.total, parameters), strict=True)))
    return gradients


def test_several_microbatches_are_adama() -> None:
    """m takes up the sum of gradients, v the sum of their squares; weights move once, by plain formulas written out."""
    run = Run(recipe(*RELEASED, "optim.weight_decay=0.1"))
    optim = run.recipe.optim
    w = {name: p.detach().double() for name, p in run.model.named_parameters()}
    m, v = ({name: torch.zeros_like(value) for name, value in w.items()} for _ in range(2))
    for number in range(2):
        found = batches(number, 4)
        parts = [{n: g.double() for n, g in each.items()} for each in microbatch_gradients(run, found)]
        run.step(number, found)
        for name in w:
            g, squares = sum(p[name] for p in parts), sum(p[name] ** 2 for p in parts)
            m[name] = optim.beta1 * m[name] + (1 - optim.beta1) * g
            v[name] = optim.beta2 * v[name] + (1 - optim.beta2) * squares
            unbiased = m[name] / (1 - optim.beta1 ** (number + 1))
            root = (v[name] / (1 - optim.beta2 ** (number + 1))).sqrt()
            decay = optim.weight_decay if w[name].dim() > 1 else 0.0
            w[name] = w[name] * (1 - optim.lr * decay) - optim.lr * unbiased / (root + optim.eps)
    tensors = run.tensors()
    for name, parameter in run.model.named_parameters():
        assert_close(tensors[f"optim/{name}/exp_avg"], m[name].float(), SUM_ORDER, name)
        assert_close(tensors[f"optim/{name}/exp_avg_sq"], v[name].float(), SUM_ORDER, name)
        far = (parameter.detach().double() - w[name]).abs().max()
        assert far < 2e-3 * optim.lr, (name, far)  # where a gradient is next to nothing its sign decides


def test_momentum_takes_up_several_microbatches_exactly() -> None:
    rest = "optim.freeze=[embeddings,head,router,norms]"  # which AdamW has
    changes = ["optim.method=muon", "optim.muon.nesterov=false", rest]
    runs = [Run(recipe(*way, *changes)) for way in (PLAIN, RELEASED)]
    for number in range(3):
        for run in runs:
            run.step(number, batches(number, 3))
    plain, released = (run.tensors() for run in runs)
    momenta = [name for name in plain if name.endswith("/momentum")]
    assert momenta
    for name in momenta:
        error = (released[name] - plain[name]).norm() / plain[name].norm()
        assert error < 1e-4, (name, error)


def test_nesterovs_momentum_takes_one_microbatch_alone() -> None:
    run = Run(recipe(*RELEASED, "optim.method=muon"))
    run.step(0)
    with pytest.raises(ConfigError, match=r"gradients of 2 microbatches together.*use optim\.muon\.nesterov=false"):
        run.step(1, batches(1, 2))


def test_a_step_is_clipped_by_the_norm_of_the_one_before() -> None:
    limit = 0.05
    changes = ["optim.clipping=lagged", f"optim.clip_grad_norm={limit}"]
    same = ["optim.eps=0.0001", "optim.expert_bias_update_rate=0"]
    lagged, plain = Run(recipe(*RELEASED, *changes, *same)), Run(recipe(*PLAIN, *same))
    before = None
    for number in range(3):
        found = batches(number)
        gradients = microbatch_gradients(plain, found)[0]
        scale = 1.0 if before is None else min(1.0, limit / (before + 1e-6))
        for name, parameter in plain.model.named_parameters():
            parameter.grad = gradients[name] * scale
        plain.state.optimizer.step()
        result = lagged.step(number, found)
        before = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        assert result.grad_norm.item() == pytest.approx(before, rel=1e-3)  # before it was scaled
        assert before > limit
    theirs = dict(plain.model.named_parameters())
    for name, parameter in lagged.model.named_parameters():
        far = (parameter - theirs[name]).abs().max()
        assert far < 1e-3 * lagged.recipe.optim.lr, (name, far)


def weight_after_a_sudden_gradient(clipping: str, sudden: float, parts: int = 1) -> tuple[Tensor, float]:
    """Return a weight after ten steady gradients and one that is so many times as large, and how far that moved it."""
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 8192).view(64, 128))
    optim = dataclasses.replace(recipe(*PLAIN, f"optim.clipping={clipping}").optim, weight_decay=0.0)
    optimizer = MuonAdamW([{"params": [weight], "lr": optim.lr}], optim)
    for i in range(11):
        before = weight.detach().clone()
        gradient = torch.randn(64, 128, generator=torch.Generator().manual_seed(i)) * (0.9 if i < 10 else sudden)
        for part in range(parts):
            weight.grad = gradient / parts
            if part < parts - 1:
                optimizer.gather_([weight], part)
        optimizer.step()
    return weight.detach(), float((weight - before).detach().abs().mean())


def test_an_update_is_held_back_by_how_sudden_a_gradient_is() -> None:
    steady = [weight_after_a_sudden_gradient(clipping, 0.01)[0] for clipping in ("global", "update")]
    free, held = (weight_after_a_sudden_gradient(clipping, 100.0)[1] for clipping in ("global", "update"))
    assert free / held == pytest.approx(math.sqrt((1 - 0.95**11) / 0.05), rel=0.02)  # the most that it can be
    assert (steady[0] - steady[1]).abs().max() < 0.1 * free
    gathered = [weight_after_a_sudden_gradient(clipping, 100.0, parts=4)[1] for clipping in ("global", "update")]
    assert gathered[0] / gathered[1] > 2


@pytest.mark.parametrize("allowed", [0, 1])
def test_gradients_that_are_not_finite_are_not_applied_and_the_step_is_counted(allowed: int) -> None:
    run = Run(recipe(*RELEASED, f"optim.skip.nonfinite_steps={allowed}"))
    broken = run.model.get_parameter("model.layers.1.attention.dense.weight")
    handle = broken.register_hook(lambda gradient: gradient * torch.inf)
    before = run.tensors()
    if allowed:
        assert run.step(0).skipped
        assert run.state.guard.skipped == 1
    else:
        with pytest.raises(TrainingError, match=r"at step 1 the loss is .* and the gradient norm (inf|nan)"):
            run.step(0)
    assert run.state.in_backward is not None
    assert run.state.in_backward.broken == "model.layers.1"
    assert run.state.in_backward.previous_norm is None
    moved = {n for n, value in run.tensors().items() if not torch.equal(value, before[n])}
    later = ("model.word_embeddings", "model.layers.0.", "model.layers.1.")  # backward reaches them last
    assert not [name for name in moved if name.split("/")[1].startswith(later)]
    assert "model/lm_head.weight" in moved
    assert not [name for name in moved if "expert_bias" in name]
    handle.remove()
    if allowed:
        assert not run.step(1).skipped
        assert all(value.isfinite().all() for value in run.tensors().values())


def test_a_loss_that_is_not_finite_or_a_spike_moves_no_weight() -> None:
    run = Run(recipe(*RELEASED, "optim.skip.rule=mad", "optim.skip.at_least=3", "optim.skip.nonfinite_steps=1"))
    for number in range(4):
        assert not run.step(0).skipped, number
    before, updates = run.tensors(), run.state.optimizer.updates
    head = run.model.head_weight.detach()
    kept = head[10].clone()
    for spoilt in (torch.inf, 30.0):
        head[10] = spoilt
        result = run.step(4)
        assert result.skipped
        assert result.grad_norm == 0
        head[10] = kept
    assert run.state.guard.skipped == 2
    assert run.state.optimizer.updates == updates
    after = run.tensors()
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []


def test_parameters_that_one_microbatch_alone_reaches_move_all_the_same() -> None:
    """Without labels ahead the second microbatch has no MTP loss that leads to its block."""
    run = Run(recipe(*RELEASED))
    first, second = batches(0, 2)
    alone = dataclasses.replace(
        second, mtp_labels=second.mtp_labels[:0], attention=dataclasses.replace(second.attention, mtp_ids=None)
    )
    before = run.tensors()
    in_backward = run.state.in_backward
    assert in_backward is not None
    in_backward.begin(2)
    for i, batch in enumerate((first, alone)):
        output = run.model(batch.tokens, batch.positions, batch.attention)
        assert in_backward.backward(compute_loss(run.model, output, batch.labels, batch.mtp_labels).total, i)
    assert in_backward.finish() > 0
    still = [n for n, v in run.tensors().items() if torch.equal(v, before[n]) and n.startswith("model/")]
    assert [name for name in still if "expert_bias" not in name] == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["optim.in_backward=true"], r"before the norm of the whole gradient is known; use optim\.clipping=lagged or"),
        (["optim.clipping=lagged"], r"optim\.clipping lagged is for optim\.in_backward"),
        ([*RELEASED, "optim.beta1=0"], r"optim\.beta1 must be above 0"),
        ([*RELEASED, "optim.method=muon", "optim.muon.momentum=0"], r"optim\.muon\.momentum must be above 0"),
        ([*RELEASED, "parallel.pipeline=2"], r"but parallel\.pipeline is 2; use 1"),
        ([*RELEASED, "parallel.tensor=2"], r"but parallel\.tensor is 2; use 1"),
        (
            ["optim.clipping=update", "parallel.tensor=2"],
            r"optim\.clipping update does without tensor and pipeline ranks",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        recipe(*changes)


def test_a_run_that_is_resumed_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    of = recipe(*RELEASED, *SMALL, "optim.clipping=lagged", "optim.clip_grad_norm=0.1", "model.num_hidden_layers=2")
    whole = Run(of)
    whole.step(0, batches(0, 2))
    save_dcp(tmp_path / "at_1", whole.tensors(), whole.state.facts() | {"step": 1})
    resumed = Run(of)
    resumed.state.restore(DcpSource(tmp_path / "at_1"))
    for run in (whole, resumed):
        run.step(1, batches(1, 2))
    assert_same_bits(whole, resumed)
    assert whole.state.in_backward is not None
    assert resumed.state.facts()["previous_norm"] == whole.state.in_backward.previous_norm
    assert (whole.state.in_backward.previous_norm or 0) > 0.1  # so that it scaled something


def test_microbatches_are_rounded_by_noise_of_their_own_which_is_no_state() -> None:
    name, optim = "model.layers.1.mlp.experts.down_proj", recipe(*RELEASED, *SMALL).optim
    found = []
    for microbatch in (0, 0, 1):
        model = tiny_model().bfloat16()
        optimizer = build_optimizer(model, optim)
        parameter = model.get_parameter(name)
        parameter.grad = torch.linspace(-1, 1, parameter.numel()).view(parameter.shape).bfloat16()
        optimizer.gather_([parameter], microbatch)
        found.append(state_tensors(model, optimizer)[f"optim/{name}/exp_avg"].float())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
