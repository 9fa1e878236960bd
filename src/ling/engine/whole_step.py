"""A step of decoding as one call of the C library: all layers, with attention to the cache (`ops.cpu.stack`).

Made once, when the model and its cache are there; the runner takes it wherever it is the faster way, and gets the very
numbers that the model's own forward pass through the same kernels gives.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ling.engine.cache import PagedBatch, PagedCache
from ling.model import CausalLM
from ling.model.block import Block
from ling.model.linear import quantity_of
from ling.model.moe import SparseMoe
from ling.model.mtp import MtpBlock
from ling.ops.backend import forced_backend
from ling.ops.cpu import stack
from ling.ops.paged_attention import BlockStore
from ling.ops.rope import Rope

logger = logging.getLogger(__name__)


class WholeStep:
    """Some blocks of a model and the norm behind them. The model's weights may change in place, but not move."""

    def __init__(self, layers: Sequence[stack.LayerWeights], run: stack.Stack) -> None:
        self._layers = layers
        self._run = run
        self._fast: dict[tuple[int, int], bool] = {}

    def suits(self, rows: int, longest: int) -> bool:
        """Whether this is the way to run so many rows, of which one sequence has `longest`."""
        forced = forced_backend()
        if forced is not None:
            return forced == "cpu"
        if (rows, longest) not in self._fast:
            self._fast[rows, longest] = stack.rather_not(rows, longest, self._layers) is None
        return self._fast[rows, longest]

    def __call__(self, x: Tensor, rope: Rope, batch: PagedBatch, hidden: Tensor | None = None) -> tuple[Tensor, bool]:
        """Run the layers over embeddings (N, H), as `ops.cpu.stack.Stack.run`; `batch` is one group without padding."""
        (group,) = batch.groups
        return self._run.run(x, rope, batch.slots, group.held, hidden)


def whole_model(model: CausalLM, cache: PagedCache) -> WholeStep | None:
    """Return the main layers as one call; None where they cannot be, with the reason in the log."""
    network = model.model
    blocks = list(network.layers[: model.config.num_hidden_layers])
    return _make(model, cache, blocks, network.norm.weight, None)  # type: ignore[arg-type]


def whole_draft(model: CausalLM, cache: PagedCache) -> WholeStep | None:
    """Return the first MTP layer as one call; None where it cannot be, or there is none."""
    if not model.config.num_nextn_predict_layers:
        return None
    block: MtpBlock = model.model.mtp_block(0)
    join = stack.JoinWeights(block.enorm.weight, block.hnorm.weight, quantity_of(block.eh_proj))
    return _make(model, cache, [block], block.final_layernorm.weight, join)


def _make(
    model: CausalLM, cache: PagedCache, blocks: list[Block], norm: Tensor, join: stack.JoinWeights | None
) -> WholeStep | None:
    layers = [_weights(block, cache.store(block.attention.layer)) for block in blocks]
    if reason := _why_not_model(model, blocks) or stack.why_not(layers, norm, join):
        logger.debug("a step is no single call: %s", reason)
        return None
    rotated, eps = model.config.rotated_dim, model.config.rms_norm_eps
    return WholeStep(layers, stack.Stack(layers, norm, eps, rotated, join))


def _why_not_model(model: CausalLM, blocks: list[Block]) -> str | None:
    network = model.model
    if (network.stream_dtype or network.word_embeddings.weight.dtype) != torch.float32:
        return "activations are not torch.float32"
    if network.before is not None or any(isinstance(b.mlp, SparseMoe) and b.mlp.mix is not None for b in blocks):
        return "parts of the model are elsewhere"
    hooked = any(m._forward_hooks or m._forward_pre_hooks for block in blocks for m in block.modules())
    return "hooks look into the layers" if hooked else None


def _weights(block: Block, store: BlockStore) -> stack.LayerWeights:
    mlp = block.mlp
    return stack.LayerWeights(
        block.input_layernorm.weight,
        block.attention.weights(),
        block.attention.heads,
        store,
        block.post_attention_layernorm.weight,
        (mlp.weights(), mlp.rule) if isinstance(mlp, SparseMoe) else mlp.quantities(),
    )
