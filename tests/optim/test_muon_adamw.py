"""The one optimizer: AdamW to torch's bit, Muon's groups, masters, the padding row, its state."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ling.checkpoint.dcp import DcpSource, save_dcp
from ling.config.optimizer import MuonConfig
from ling.config.training import OptimConfig
from ling.model import CausalLM
from ling.optim.build import build_optimizer, set_lr, state_tensors
from ling.optim.muon_adamw import MuonAdamW
from ling.testing.models import tiny_model
from ling.train.batch import build_batch
from ling.train.loss import compute_loss

MUON = OptimConfig(method="muon", lr=1e-2, warmup_steps=0)


def backward(model: CausalLM, seed: int = 0) -> float:
    generator = torch.Generator().manual_seed(seed)
    documents = [torch.randint(10, 90, (24,), generator=generator).tolist() for _ in range(3)]
    batch = build_batch(documents, [[True] * 24] * 3, model.config.num_nextn_predict_layers)
    output = model(batch.tokens, batch.positions, batch.attention)
    loss = compute_loss(model, output, batch.labels, batch.mtp_labels, router_z_loss=1e-3).total
    loss.backward()
    return loss.item()


def step(model: CausalLM, optimizer: torch.optim.Optimizer, seed: int = 0) -> float:
    loss = backward(model, seed)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def assert_same(model: CausalLM, other: CausalLM) -> None:
    theirs = dict(other.named_parameters())
    different = [n for n, p in model.named_parameters() if not torch.equal(p, theirs[n])]
    assert not different, different


def test_without_muon_it_is_torchs_fused_adamw_to_the_bit() -> None:
    optim = OptimConfig(lr=1e-2, eps=1e-6)
    models = [tiny_model(), tiny_model()]
    groups = [
        {"params": [p for p in models[1].parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in models[1].parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    ours = build_optimizer(models[0], optim)
    theirs = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-6, fused=True)
    row = models[0].model.word_embeddings.padding_idx
    for i in range(4):
        assert step(models[0], ours, i) == step(models[1], theirs, i)
        assert_same(*models)
    assert row is not None  # a row of zeros: decay would not show
    assert not models[0].model.word_embeddings.weight[row].any()
    for mine, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(ours.state[mine][key], theirs.state[other][key]), key


def test_muon_takes_the_matrices_between_embedding_and_head_and_adamw_the_rest() -> None:
    model = tiny_model(use_bias=True, use_qkv_bias=True)
    names = {p: name for name, p in model.named_parameters()}
    methods = {
        names[p]: (group["method"], group["weight_decay"])
        for group in build_optimizer(model, MUON).param_groups
        for p in group["params"]
    }
    assert methods.keys() == set(names.values())
    for name, found in methods.items():
        if name.endswith(("word_embeddings.weight", "lm_head.weight", "gate.weight")):
            expected = ("adamw", 0.1)
        elif "norm" in name or name.endswith("bias"):
            expected = ("adamw", 0.0)
        else:
            expected = ("muon", 0.1)
        assert found == expected, name


@pytest.mark.parametrize("changes", [{}, {"muon": MuonConfig(precision="bfloat16")}])
def test_the_loss_falls(changes: dict[str, Any]) -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, OptimConfig(method="muon", lr=1e-2, **changes))
    losses = [step(model, optimizer) for _ in range(12)]
    assert losses[-1] < losses[0] - 1, losses


@pytest.mark.parametrize(
    "optim", [OptimConfig(lr=1e-2), MUON, OptimConfig(method="muon", lr=1e-2, master_weights=True)]
)
def test_a_run_that_is_resumed_from_flat_tensors_goes_on_with_the_same_bits(tmp_path: Path, optim: OptimConfig) -> None:
    def begin() -> tuple[CausalLM, MuonAdamW]:
        model = tiny_model()
        if optim.master_weights:
            model.bfloat16()
        return model, build_optimizer(model, optim)

    model, optimizer = begin()
    for i in range(3):
        step(model, optimizer, i)
    save_dcp(tmp_path / "at_3", {**dict(model.named_parameters()), **state_tensors(model, optimizer)}, {"step": 3})
    for i in range(3, 6):
        step(model, optimizer, i)

    other, fresh = begin()
    DcpSource(tmp_path / "at_3").load_into({**dict(other.named_parameters()), **state_tensors(other, fresh)})
    for i in range(3, 6):
        step(other, fresh, i)
    assert_same(model, other)


def test_the_state_dict_of_torch_keeps_every_dtype() -> None:
    model = tiny_model().bfloat16()
    optim = OptimConfig(method="muon", master_weights=True)
    optimizer = build_optimizer(model, optim)
    step(model, optimizer)
    other = build_optimizer(model, optim)
    other.load_state_dict(optimizer.state_dict())
    for name, value in state_tensors(model, optimizer).items():
        assert value.dtype == torch.float32, name
        assert torch.equal(state_tensors(model, other)[name], value), name


def test_names_of_the_state() -> None:
    model = tiny_model()
    keys = state_tensors(model, build_optimizer(model, MUON))
    assert "optim/model.layers.1.mlp.experts.gate_up_proj/momentum" in keys
    assert "optim/lm_head.weight/exp_avg_sq" in keys
    assert not any(key.endswith("/master") for key in keys)


def test_masters_follow_float32_adamw_where_bfloat16_alone_would_stand_still() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(40, 16, generator=generator).bfloat16()
    optim = OptimConfig(lr=1e-5, weight_decay=0.1, master_weights=True, muon=MuonConfig(chunk_mib=1))
    parameter, exact, rounded = (torch.nn.Parameter(t) for t in (start.clone(), start.float(), start.clone()))
    groups = [{"params": [parameter], "weight_decay": 0.1}]
    ours = MuonAdamW(groups, optim)
    plain = {"lr": 1e-5, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "fused": True}
    theirs, without = torch.optim.AdamW([exact], **plain), torch.optim.AdamW([rounded], **plain)
    for _ in range(5):
        gradient = torch.randn(40, 16, generator=generator).bfloat16()
        parameter.grad, exact.grad, rounded.grad = gradient, gradient.float(), gradient
        for optimizer in (ours, theirs, without):
            optimizer.step()
    assert torch.equal(ours.state[parameter]["master"], exact)
    assert torch.equal(parameter, exact.bfloat16())
    assert ours.state[parameter]["step"].item() == 5
    moved = (exact != start).float().mean()
    lost = (rounded == start).float().mean()
    assert moved > 0.99
    assert lost > 0.9, lost


def test_masters_are_stepped_in_pieces_to_the_same_bits() -> None:
    masters = []
    for chunk_mib in (1, 256):  # 2**18 float32 values in a MiB
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 600_000).bfloat16().view(600, 1000))
        optim = OptimConfig(master_weights=True, muon=MuonConfig(chunk_mib=chunk_mib))
        ours = MuonAdamW([{"params": [parameter]}], optim)
        for i in range(2):
            parameter.grad = torch.linspace(1 + i, -1, 600_000).bfloat16().view(600, 1000)
            ours.step()
        masters.append(ours.state[parameter]["master"])
    assert torch.equal(*masters)


def test_float32_parameters_need_no_master() -> None:
    model = tiny_model().bfloat16()  # the routers stay float32
    optimizer = build_optimizer(model, OptimConfig(master_weights=True))
    for name, parameter in model.named_parameters():
        assert ("master" in optimizer.state[parameter]) == (not name.endswith("gate.weight")), name
    step(model, optimizer)
    for parameter in model.parameters():
        if "master" in (state := optimizer.state[parameter]):
            assert torch.equal(parameter, state["master"].bfloat16())


@pytest.mark.parametrize("master", [False, True])
def test_the_padding_row_of_a_trained_checkpoint_does_not_decay(master: bool) -> None:
    model = tiny_model()
    weight, padding = model.model.word_embeddings.weight, model.config.pad_token_id
    with torch.no_grad():
        weight[padding] = 1.0
    if master:
        model.bfloat16()
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5, master_weights=master))
    unseen = weight[95].detach().clone()
    for i in range(3):
        step(model, optimizer, i)
    assert (weight[padding] == 1.0).all()
    assert weight[95].norm() < 0.9 * unseen.norm(), "a row without gradients decays"


def test_learning_rate_factors_by_group() -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, OptimConfig(lr_multipliers=("embeddings=0.1", "*.layers.2.*=2")))
    set_lr(optimizer, 0.5)
    names = {p: name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            expected = 0.05 if "word_embeddings" in name else 1.0 if ".layers.2." in name else 0.5
            assert group["lr"] == pytest.approx(expected), name


def test_what_has_no_gradient_is_left_alone() -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, MUON)
    backward(model)
    still = model.model.layers[1].mlp.experts.gate_up_proj
    still.grad = None
    before = still.detach().clone()
    optimizer.step()
    assert torch.equal(still, before)
