"""The network against reference numbers from an independent implementation (tests/golden/README.md)."""

import pytest
import torch
from tests.golden_cases import Run, load_case, packed_labels, published_gradients, reference_losses, runs
from torch import Tensor

from ling.model import CausalLM, ModelOutput
from ling.model.moe import SparseMoe
from ling.ops.backend import use_backend
from ling.testing.tolerances import (
    GOLDEN,
    GOLDEN_FAR,
    GOLDEN_FAR_LOSS,
    GOLDEN_GRAD,
    GOLDEN_LOSS,
    assert_close,
)
from ling.train.loss import Losses, compute_loss

FP32_RUNS = [r for r in runs("forward") if r.case not in ("bf16", "ties_raw")]
BF16_RUNS = [r for r in runs("forward") if r.case == "bf16"]


def forward(model: CausalLM, run: Run) -> ModelOutput:
    batch = run.batch(model.config.num_nextn_predict_layers)
    return model(run.pack(run.ids), run.pack(run.positions), batch)


def losses_of(model: CausalLM, run: Run, output: ModelOutput) -> Losses:
    labels = packed_labels(run, model.config.num_nextn_predict_layers)
    return compute_loss(model, output, labels[0], labels[1:])


def recorded(model: CausalLM, run: Run) -> tuple[ModelOutput, dict[str, Tensor]]:
    """Run the model and keep what each block, attention and feed-forward gave."""
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_module, _inputs, output) -> None:
            seen[name] = (output[0] if isinstance(output, tuple) else output).detach()

        return hook

    handles = []
    for i, block in enumerate(model.model.layers):
        last = block if i < model.config.num_hidden_layers else block.final_layernorm
        for name, module in (
            (f"{i}.hidden", last),
            (f"{i}.attn_out", block.attention),
            (f"{i}.mlp_out", block.mlp),
        ):
            handles.append(module.register_forward_hook(keep(f"out.layers.{name}")))
    with torch.no_grad():
        output = forward(model, run)
    for handle in handles:
        handle.remove()
    return output, seen


def assert_routing(run: Run, output: ModelOutput) -> None:
    for layer, routing in output.routings.items():
        name = f"out.layers.{layer}"
        if f"{name}.router_logits" not in run.data:
            continue
        tolerance = GOLDEN_FAR if run.far else GOLDEN
        assert_close(routing.logits[run.compared], run.expected(f"{name}.router_logits"), tolerance, name)
        if run.case == "ties":  # any resolution of the ties gives the same hidden states
            continue
        ids, order = routing.ids[run.compared].sort(1)
        wanted_ids, wanted_order = run.expected(f"{name}.topk_idx").sort(1)
        assert torch.equal(ids, wanted_ids), f"{run} {name}: other experts"
        weights = routing.weights[run.compared].gather(1, order)
        wanted = run.expected(f"{name}.topk_weight").gather(1, wanted_order)
        assert_close(weights, wanted, GOLDEN, f"{run} {name}.topk_weight")


@pytest.mark.parametrize("backend", ["chosen", "reference"])
@pytest.mark.parametrize("run", FP32_RUNS, ids=str)
def test_every_float32_case_gives_the_reference_numbers(run: Run, backend: str) -> None:
    model = load_case(run.case)
    if backend == "reference":
        with use_backend("reference"):
            output, seen = recorded(model, run)
    else:
        output, seen = recorded(model, run)
    tolerance = GOLDEN_FAR if run.far else GOLDEN
    compared = 0
    for name, got in seen.items():
        if name in run.data:
            assert_close(got[run.compared], run.expected(name), tolerance, f"{run} {name}")
            compared += 1
    assert compared >= model.config.num_hidden_layers
    heads = {"out.logits": model.logits(output.hidden), "out.final_hidden": output.hidden}
    heads |= {f"out.mtp_logits.{i}": model.logits(h) for i, h in enumerate(output.mtp_hidden)}
    for name, got in heads.items():
        assert_close(got[run.compared], run.expected(name), tolerance, f"{run} {name}")
    assert_routing(run, output)
    if "in.labels" in run.data:
        assert_losses(model, run, output)


def assert_losses(model: CausalLM, run: Run, output: ModelOutput) -> None:
    tolerance = GOLDEN_FAR_LOSS if run.far else GOLDEN_LOSS
    losses = losses_of(model, run, output)
    wanted, wanted_mtp = reference_losses(model.config, run)
    assert_close(losses.total, wanted, tolerance, f"{run} loss")
    for i, (got, expected) in enumerate(zip(losses.mtp, wanted_mtp, strict=True)):
        assert_close(got, expected, tolerance, f"{run} mtp loss {i}")


@pytest.mark.parametrize("run", BF16_RUNS, ids=str)
def test_bfloat16_is_no_further_from_float32_than_the_reference_is(run: Run) -> None:
    model = load_case(run.case, torch.bfloat16)
    with torch.no_grad():
        output = forward(model, run)
        logits = model.logits(output.hidden)[run.compared]
    exact = run.expected("alt.fp32.logits")
    ours, theirs = (logits - exact).abs(), (run.expected("out.logits") - exact).abs()
    assert ours.max() <= 1.5 * theirs.max(), (ours.max(), theirs.max())
    assert ours.square().mean() <= 1.5**2 * theirs.square().mean()
    for layer, routing in output.routings.items():
        wanted = run.expected(f"out.layers.{layer}.topk_idx").sort(1).values
        assert torch.equal(routing.ids[run.compared].sort(1).values, wanted), f"layer {layer}: other experts"


@pytest.mark.parametrize("run", [r for r in runs("forward") if r.case == "ties_raw"], ids=str)
def test_exact_ties_go_to_the_lowest_index_and_nothing_else_differs(run: Run, monkeypatch) -> None:
    model = load_case(run.case)
    with torch.no_grad():
        output = forward(model, run)
    (layer,) = output.routings
    assert_close(output.routings[layer].logits, run.pack(run.data[f"out.layers.{layer}.router_logits"]), GOLDEN)
    moe = model.model.layers[layer].mlp
    assert isinstance(moe, SparseMoe)
    assert_lowest_index_wins(output.routings[layer].logits.sigmoid() + moe.gate.expert_bias, output, moe)
    # With the reference's own resolution of the ties everything else agrees.
    theirs = run.pack(run.data[f"out.layers.{layer}.topk_idx"])
    monkeypatch.setattr("ling.ops.router.choose_experts", lambda scores, rule: theirs)
    with torch.no_grad(), use_backend("reference"):  # a fused layer chooses inside
        logits = model.logits(forward(model, run).hidden)
    assert_close(logits[run.compared], run.expected("out.logits"), GOLDEN, str(run))


def assert_lowest_index_wins(scores: Tensor, output: ModelOutput, moe: SparseMoe) -> None:
    """Check the choice against one made in plain Python, where sorting is stable by definition."""
    (routing,) = output.routings.values()
    size = scores.shape[1] // moe.rule.n_group
    for row, chosen in zip(scores.tolist(), routing.ids.tolist()):
        groups = [row[g * size : (g + 1) * size] for g in range(moe.rule.n_group)]
        score = [sum(sorted(group)[-2:]) for group in groups]
        kept = sorted(range(len(groups)), key=lambda g: -score[g])[: moe.rule.topk_group]
        candidates = [e for e in range(len(row)) if e // size in kept]
        wanted = sorted(candidates, key=lambda e: -row[e])[: moe.rule.num_experts_per_tok]
        assert sorted(chosen) == sorted(wanted), (chosen, wanted)


@pytest.mark.parametrize("backend", ["chosen", "reference"])
@pytest.mark.parametrize("run", runs("train"), ids=str)
def test_loss_and_every_gradient_match(run: Run, backend: str) -> None:
    model = load_case(run.case)
    if backend == "reference":
        with use_backend("reference"):
            output = forward(model, run)
            losses = losses_of(model, run, output)
    else:
        output = forward(model, run)
        losses = losses_of(model, run, output)
    losses.total.backward()
    assert_close(losses.total, run.data["out.loss"].squeeze(), GOLDEN_LOSS, f"{run} loss")
    assert_close(model.logits(output.hidden), run.pack(run.data["out.logits"]), GOLDEN, f"{run} logits")
    gradients = published_gradients(model, model.config)
    wanted = {k.removeprefix("out.grad."): v for k, v in run.data.items() if k.startswith("out.grad.")}
    assert wanted.keys() == gradients.keys()
    for name, expected in wanted.items():
        assert_close(gradients[name], expected, GOLDEN_GRAD, f"{run} {name}")
    norm = torch.nn.utils.get_total_norm(gradients.values())
    assert_close(norm, run.data["out.grad_norm"].squeeze(), GOLDEN_GRAD, f"{run} gradient norm")
