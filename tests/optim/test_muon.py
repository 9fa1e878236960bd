"""Muon's update: against the plain one, its memory, the matrices inside a parameter."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ling.config.optimizer import MuonConfig
from ling.optim.muon import MuonRule, row_parts
from ling.optim.newton_schulz import orthogonalize
from ling.optim.sharding import through_full_matrix
from ling.testing.models import tiny_config, tiny_model
from ling.testing.tolerances import SUM_ORDER, assert_close


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain_step(
    weight: Tensor, gradient: Tensor, momentum: Tensor, parts: tuple[int, ...], lr: float, decay: float
) -> tuple[Tensor, Tensor]:
    """Muon as it is written in arXiv 2502.16982, one matrix after the other, in float64."""
    weight, gradient, momentum = weight.double(), gradient.double(), momentum.double()
    momentum = 0.95 * momentum + gradient
    nesterov = gradient + 0.95 * momentum
    stacked = nesterov if nesterov.dim() == 3 else nesterov[None]
    matrices = []
    for matrix in stacked:
        blocks = [orthogonalize(b, dtype=torch.float64) * 0.2 * max(b.shape) ** 0.5 for b in matrix.split(list(parts))]
        matrices.append(torch.cat(blocks))
    return weight - lr * (torch.stack(matrices).view_as(weight) + decay * weight), momentum


@pytest.mark.parametrize(
    ("shape", "parts"), [((24, 16), (24,)), ((32, 16), (16, 8, 8)), ((5, 12, 16), (6, 6)), ((5, 16, 6), (16,))]
)
@pytest.mark.parametrize("chunk_mib", [256, 1])
def test_two_steps_are_those_of_the_plain_rule(shape: tuple[int, ...], parts: tuple[int, ...], chunk_mib: int) -> None:
    rule = MuonRule(MuonConfig(chunk_mib=chunk_mib), through_full_matrix)
    weight, momentum = random(*shape), torch.zeros(shape)
    expected, expected_momentum = weight, momentum
    for seed in (1, 2):
        gradient = random(*shape, seed=seed)
        expected, expected_momentum = plain_step(expected, gradient, expected_momentum, parts, 0.1, 0.3)
        rule.step_(weight, gradient, momentum, parts, lr=0.1, decay=0.3)
    assert_close(weight, expected, SUM_ORDER)
    assert_close(momentum, expected_momentum, SUM_ORDER)


def test_an_update_is_as_large_as_one_of_adamw() -> None:
    weight = torch.zeros(4, 48, 64)
    rule = MuonRule(MuonConfig(), through_full_matrix)
    rule.step_(weight, random(4, 48, 64), torch.zeros(4, 48, 64), (48,), lr=1.0, decay=0.0)
    assert weight.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.15)


def test_a_part_does_not_see_its_neighbours() -> None:
    """Query, key, value: the update of a part stays when the gradients of the others change."""
    rule = MuonRule(MuonConfig(), through_full_matrix)
    gradient, results = random(32, 16), []
    for factor in (1.0, 100.0):
        weight = torch.zeros(32, 16)
        gradient[24:] *= factor
        rule.step_(weight, gradient, torch.zeros(32, 16), (16, 8, 8), lr=1.0, decay=0.0)
        results.append(weight)
    assert torch.equal(results[0][:24], results[1][:24])


def test_the_parts_of_each_parameter_of_a_model() -> None:
    model = tiny_model()
    c, parts = model.config, {}
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parts[name] = row_parts(name, parameter.shape[-2], c)
    heads = (c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads)
    assert parts["model.layers.1.attention.query_key_value.weight"] == tuple(n * c.head_dim for n in heads)
    assert parts["model.layers.1.mlp.experts.gate_up_proj"] == (c.moe_intermediate_size,) * 2
    split = {name for name, rows in parts.items() if len(rows) > 1}
    assert all(name.endswith(("query_key_value.weight", "experts.gate_up_proj")) for name in split), split
    assert len(split) == len(model.model.layers) + c.num_moe_layers + c.num_nextn_predict_layers


@pytest.mark.parametrize("experts_per_chunk", [1, 3, 7])
def test_chunks_of_a_stack_give_the_same_as_the_whole(experts_per_chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for chunk in (experts_per_chunk, 100):
        with monkeypatch.context() as patch:
            patch.setattr(
                MuonRule, "_pieces", lambda self, t, parts, n=chunk: (slice(i, i + n) for i in range(0, len(t), n))
            )
            weight, momentum = random(7, 12, 16), random(7, 12, 16, seed=5)
            rule = MuonRule(MuonConfig(), through_full_matrix)
            rule.step_(weight, random(7, 12, 16, seed=6), momentum, (6, 6), lr=0.1, decay=0.1)
            results.append(weight)
    assert_close(results[0], results[1], SUM_ORDER)


class Peak(TorchDispatchMode):
    """Counts the bytes of new storages that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.known = weakref.WeakSet[Any]()

    def see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.known:
            self.known.add(storage)
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self.gone, storage.nbytes())

    def gone(self, num_bytes: int) -> None:
        self.alive -= num_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.see(tensor)
        return result


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "parts"), [((256, 1024, 2048), (512, 512)), ((256, 2048, 512), (2048,))])
def test_temporaries_of_ling_minis_experts_stay_within_the_bound(
    shape: tuple[int, ...], parts: tuple[int, ...], precision: Any
) -> None:
    """A layer's experts are 2.1 and 1.1 GB in float32; they are stepped here on a device without memory."""
    weight, gradient, momentum = (torch.empty(shape, device="meta") for _ in range(3))
    rule = MuonRule(MuonConfig(chunk_mib=256, precision=precision), through_full_matrix)
    with Peak() as memory:
        for tensor in (weight, gradient, momentum):
            memory.see(tensor)
        before = memory.alive
        rule.step_(weight, gradient, momentum, parts, lr=0.1, decay=0.1)
    assert 100 << 20 < memory.peak - before <= 256 << 20, (memory.peak - before) / 2**20


def test_one_matrix_is_taken_even_if_it_is_larger_than_the_bound() -> None:
    rule = MuonRule(MuonConfig(chunk_mib=1), through_full_matrix)
    weight = random(2, 300, 400)
    before = weight.clone()
    rule.step_(weight, random(2, 300, 400, seed=1), torch.zeros_like(weight), (300,), lr=0.1, decay=0.0)
    assert (weight != before).any(2).all()


def test_a_layout_may_bring_its_own_way_to_whole_matrices() -> None:
    """Two ranks with half the columns each, played by two rules that share a blackboard."""
    c = tiny_config()
    whole, gradient = random(24, c.hidden_size), random(24, c.hidden_size, seed=1)
    half = c.hidden_size // 2

    def gather(parameter: Tensor, update: Tensor, ortho: Any) -> Tensor:
        first = 0 if torch.allclose(update, nesterov[:, :half]) else half
        return ortho(nesterov.clone())[:, first : first + half]

    nesterov = gradient + 0.95 * gradient
    rule = MuonRule(MuonConfig(), gather)
    parts = [whole[:, :half].clone(), whole[:, half:].clone()]
    for part, g in zip(parts, gradient.split(half, 1), strict=True):
        rule.step_(part, g, torch.zeros_like(g), (24,), lr=0.1, decay=0.2)
    MuonRule(MuonConfig(), through_full_matrix).step_(
        whole, gradient, torch.zeros_like(whole), (24,), lr=0.1, decay=0.2
    )
    assert_close(torch.cat(parts, 1), whole, SUM_ORDER)
