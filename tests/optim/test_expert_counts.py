"""Tokens per expert are counted once per step: over microbatches, and when activations are computed again."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from ling.model import CausalLM
from ling.optim.expert_bias import update_expert_biases
from ling.testing.models import tiny_model
from ling.train.batch import build_batch
from ling.train.loss import compute_loss


def recompute(block: Callable[..., Any], *arguments: Any) -> Any:
    return checkpoint(block, *arguments, use_reentrant=False)


def counts_of_a_step(model: CausalLM, **how: Any) -> tuple[dict[int, torch.Tensor], int]:
    """Forward and backward of two microbatches; counts over both, and how often routers ran."""
    runs, counts = 0, dict[int, torch.Tensor]()

    def count_run(*_: Any) -> None:
        nonlocal runs
        runs += 1

    handles = [
        layer.mlp.register_forward_pre_hook(count_run) for layer in model.model.layers if hasattr(layer.mlp, "gate")
    ]
    for length in (20, 13):
        batch = build_batch([list(range(10, 10 + length))], [[True] * length], 1)
        output = model.model(batch.tokens, batch.positions, batch.attention, **how)
        compute_loss(model, output, batch.labels, batch.mtp_labels).total.backward()
        for layer, routing in output.routings.items():
            counts[layer] = counts.get(layer, 0) + routing.counts
    for handle in handles:
        handle.remove()
    return counts, runs


def test_recompute_runs_routers_twice_and_counts_once() -> None:
    plain, again = tiny_model(), tiny_model()
    expected, runs = counts_of_a_step(plain)
    got, runs_again = counts_of_a_step(again, run=recompute)
    assert runs_again == 2 * runs
    k = plain.config.num_experts_per_tok
    for layer, counts in expected.items():
        assert torch.equal(got[layer], counts), layer
        assert int(counts.sum()) == (20 + 13) * k, layer
    for model, counts in ((plain, expected), (again, got)):
        update_expert_biases(model, counts, 0.1)
    for a, b in zip(plain.buffers(), again.buffers(), strict=True):
        assert torch.equal(a, b)
