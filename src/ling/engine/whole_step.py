"""A step of decoding as one call of the C library: all layers, with attention to the cache (`ops.cpu.stack`).

The runner takes it wherever it is the faster way, and gets the very numbers that the model's own forward pass through
the same kernels gives. The call is made of addresses, so whether they still are the model's is looked at every time.
"""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ling.engine.cache import PagedBatch, PagedCache
from ling.model import CausalLM
from ling.model.block import Block
from ling.model.linear import Linear, quantity_of
from ling.model.moe import SparseMoe
from ling.model.mtp import MtpBlock
from ling.model.norm import RMSNorm
from ling.ops.backend import forced_backend
from ling.ops.cpu import stack
from ling.ops.paged_attention import BlockStore
from ling.ops.rope import Rope

logger = logging.getLogger(__name__)

_MANY = 17
"""Rows; beyond, all are as many."""


class WholeStep:
    """Some blocks of a model and the norm behind them.

    draft  the first MTP layer in place of the main ones
    """

    def __init__(self, model: CausalLM, cache: PagedCache, *, draft: bool = False) -> None:
        self._model, self._cache, self._draft = model, cache, draft
        self.why_not: str | None = None
        """Why there is no such call."""
        self._make()

    def suits(self, rows: int, longest: int) -> bool:
        """Whether this is the way to run so many rows, of which one sequence has `longest`."""
        if self.why_not is None and self._watched.changed:
            self._make()
        if self.why_not is not None:
            return False
        if (forced := forced_backend()) is not None:
            return forced == "cpu"
        kind = min(rows, _MANY), min(longest, _MANY)
        if kind not in self._fast:
            self._fast[kind] = stack.rather_not(*kind, self._layers) is None
        return self._fast[kind]

    def __call__(self, x: Tensor, rope: Rope, batch: PagedBatch, hidden: Tensor | None = None) -> tuple[Tensor, bool]:
        """Run the layers over embeddings (N, H), as `ops.cpu.stack.Stack.run`; `batch` is one group without padding."""
        (group,) = batch.groups
        return self._run.run(x, rope, batch.slots, group.held, hidden)

    @torch.inference_mode()
    def _make(self) -> None:
        model = self._model
        self._fast: dict[tuple[int, int], bool] = {}
        last = model.config.num_hidden_layers
        found = list(model.model.layers[last : last + 1] if self._draft else model.model.layers[:last])
        blocks = [block for block in found if isinstance(block, Block)]
        self.why_not = "there is no such layer" if not blocks else _why_not_model(model, len(found) - len(blocks))
        self.why_not = self.why_not or _why_not_blocks(blocks)
        if self.why_not is None:
            self._layers = [_weights(block, self._cache.store(block.attention.layer)) for block in blocks]
            norm, join = model.model.norm, None
            if self._draft:
                assert isinstance(blocks[0], MtpBlock)
                norm, join = blocks[0].final_layernorm, _join(blocks[0])
            self.why_not = stack.why_not(self._layers, norm.weight, join)
        if self.why_not is not None:
            logger.debug("a step is no single call: %s", self.why_not)
            return
        rotated, eps = model.config.rotated_dim, model.config.rms_norm_eps
        self._run = stack.Stack(self._layers, norm.weight, eps, rotated, join)
        self._watched = _Watched([model, model.model, norm], [m for block in blocks for m in block.modules()])


class _Watched:
    """Modules whose weights were where they were, and who did nothing but what they are made for."""

    def __init__(self, around: Iterable[nn.Module], inside: Iterable[nn.Module]) -> None:
        inside = list(inside)
        self._modules = [*around, *inside]
        self._steered = [m for m in inside if isinstance(m, Linear | SparseMoe)]
        holding = [*inside, *(m for m in self._modules if isinstance(m, RMSNorm))]
        self._held = [
            (held, name, tensor, tensor.data_ptr())
            for module in holding
            for held in (module._parameters, module._buffers)
            for name, tensor in held.items()
            if tensor is not None
        ]

    @property
    def changed(self) -> bool:
        if any(held.get(name) is not tensor or tensor.data_ptr() != at for held, name, tensor, at in self._held):
            return True
        return _is_steered(self._steered) or _has_hooks(self._modules)


def _is_steered(modules: Iterable[nn.Module]) -> bool:
    return any((m.mix if isinstance(m, SparseMoe) else m.multiply) is not None for m in modules)


def _has_hooks(modules: Iterable[nn.Module]) -> bool:
    everywhere: Any = torch.nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return True
    return any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in modules)


def _why_not_model(model: CausalLM, missing: int) -> str | None:
    network = model.model
    if missing or network.before is not None or not isinstance(network.norm, RMSNorm):
        return "parts of the model are elsewhere"
    if (network.stream_dtype or network.word_embeddings.weight.dtype) != torch.float32:
        return "activations are not torch.float32"
    return "hooks look into the model" if _has_hooks([model, network, network.norm]) else None


def _why_not_blocks(blocks: list[Block]) -> str | None:
    modules = [m for block in blocks for m in block.modules()]
    if _is_steered(m for m in modules if isinstance(m, Linear | SparseMoe)):
        return "products or experts are computed in another way"
    return "hooks look into the layers" if _has_hooks(modules) else None


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


def _join(block: MtpBlock) -> stack.JoinWeights:
    return stack.JoinWeights(block.enorm.weight, block.hnorm.weight, quantity_of(block.eh_proj))
