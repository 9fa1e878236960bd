"""A step of decoding as one call of the C library: all layers, with attention to the cache (`ops.cpu.stack`).

The runner takes it wherever it is the faster way, and gets the very numbers that the model's own forward pass through
the same kernels gives. The call is made of addresses, so whether they still are the model's is looked at every time.
"""

import logging
from array import array
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from itertools import repeat
from operator import contains, is_
from typing import Any

import torch
from torch import Tensor, nn

from ling.engine.cache import PagedCache, Part
from ling.errors import ConfigError
from ling.model import CausalLM
from ling.model.block import Block
from ling.model.linear import Linear, quantity_of
from ling.model.moe import SparseMoe
from ling.model.mtp import MtpBlock
from ling.model.norm import RMSNorm
from ling.ops.backend import forced_backend
from ling.ops.cpu import library as lib
from ling.ops.cpu import paged_attention, stack
from ling.ops.cpu.shortlist import Shortlist
from ling.ops.cpu.stack_structs import JoinWeights, LayerWeights
from ling.ops.linear import Weight
from ling.ops.packed import PackedWeight, quantize
from ling.ops.paged_attention import BlockStore
from ling.ops.rope import Rope

logger = logging.getLogger(__name__)


class WholeStep:
    """Some blocks of a model and the norm behind them.

    rope   of every position that can occur
    draft  the first MTP layer in place of the main ones
    """

    def __init__(self, model: CausalLM, cache: PagedCache, rope: Rope, *, draft: bool = False) -> None:
        self._model, self._cache, self._rope, self._draft = model, cache, rope, draft
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
        return rows <= self._most_rows and paged_attention.rather_not_rows(longest) is None

    def __call__(
        self, parts: SequenceOf[Part], tokens: SequenceOf[SequenceOf[int]], hidden: Tensor | None = None
    ) -> tuple[Tensor, bool]:
        """Run the layers over the new tokens of each part, in this order, as `ops.cpu.stack.Stack.run`."""
        return self._run.run(self._lay_out(parts, tokens), None if hidden is None else hidden.contiguous())

    def propose(
        self,
        parts: SequenceOf[Part],
        tokens: SequenceOf[SequenceOf[int]],
        hidden: Tensor,
        temperatures: SequenceOf[float],
        keys: SequenceOf[int],
        shortlist: Shortlist | None = None,
    ) -> list[list[int]] | None:
        """Run and draft as `ops.cpu.stack.Stack.propose`; None, nothing done, if the kernels cannot read the head.

        shortlist  of the model's head, whose sketch is to be looked at first
        """
        if self._head is None:
            return None
        rows = self._lay_out(parts, tokens, ahead=len(keys) // len(temperatures))
        return self._run.propose(rows, hidden, shortlist or self._head, array("f", temperatures), array("Q", keys))

    def _lay_out(
        self, parts: SequenceOf[Part], tokens: SequenceOf[SequenceOf[int]], *, ahead: int = 0
    ) -> stack.NewRows:
        """Describe the rows; tables go `ahead` slots further than they do."""
        size, spare = self._cache.block_size, self._cache.spare_slot // self._cache.block_size
        own, tables, spans = array("q"), array("q"), array("q")
        width = max(-(-(part.start + part.num_new + ahead) // size) for part in parts)
        for part, new in zip(parts, tokens):
            blocks, start, count, first = part
            known = blocks[: -(-(start + count + ahead) // size)]
            own.extend(new)
            tables.extend(known)
            tables.extend([spare] * (width - len(known)))
            spans.extend((count, start + count, first))
        return stack.NewRows(own, tables, spans)

    @torch.inference_mode()
    def _make(self) -> None:
        model = self._model
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
            around = (model.model.word_embeddings.weight, self._rope, join)
            self.why_not = stack.why_not(self._layers, norm.weight, *around)
        if self.why_not is not None:
            logger.debug("a step is no single call: %s", self.why_not)
            return
        self._head = _head_of_drafts(model.head()) if self._draft else None
        self._most_rows = stack.most_rows(self._layers)
        self._run = stack.Stack(self._layers, norm.weight, model.config.rms_norm_eps, *around)
        outside = [model, model.model, model.model.layers, model.model.word_embeddings, norm]
        outside += [model.lm_head] if self._head is not None and model.lm_head is not None else []
        copied = model.head() if self._head is not None else None
        inside = [m for block in blocks for m in block.modules()]
        self._watched = _Watched(outside, inside, copied if isinstance(copied, Tensor) else None)


class _Watched:
    """Modules that were where they were, as their weights were, and did nothing but what they are made for.

    Looked at before every step, so without a loop in Python.

    copied  a weight whose values were taken, so that they must not change in place either
    """

    def __init__(self, around: Iterable[nn.Module], inside: Iterable[nn.Module], copied: Tensor | None) -> None:
        around, inside = list(around), list(inside)
        modules = [*around, *inside]
        self._fields = [module.__dict__ for module in modules]
        self._hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._steered = [m.__dict__ for m in inside if isinstance(m, Linear | SparseMoe)]
        self._steers = [
            "mix" if isinstance(m, SparseMoe) else "multiply" for m in inside if isinstance(m, Linear | SparseMoe)
        ]
        holding = [*inside, *(m for m in around if isinstance(m, RMSNorm | nn.Embedding | Linear))]
        held = [
            (held, name, tensor)
            for module in holding
            for held in (module._parameters, module._buffers)
            for name, tensor in held.items()
            if tensor is not None
        ]
        self._holders, self._names, self._tensors = map(list, zip(*held))
        self._places = [tensor.data_ptr() for tensor in self._tensors]
        self._parts = [module._modules for module in modules if module._modules]
        self._had = [dict(parts) for parts in self._parts]
        self._copied = None if copied is None or copied.is_inference() else copied  # those count no changes
        self._version = 0 if self._copied is None else self._copied._version

    @property
    def changed(self) -> bool:
        if not all(map(is_, map(dict.get, self._holders, self._names), self._tensors)) or self._parts != self._had:
            return True
        if self._copied is not None and self._copied._version != self._version:
            return True
        if list(map(Tensor.data_ptr, self._tensors)) != self._places:
            return True
        if any(self._hooks) or any(map(contains, self._fields, repeat("forward"))) or _are_all_hooked():
            return True
        return any(steer is not None for steer in map(dict.get, self._steered, self._steers))


def _is_steered(modules: Iterable[nn.Module]) -> bool:
    return any((m.mix if isinstance(m, SparseMoe) else m.multiply) is not None for m in modules)


def _has_hooks(modules: Iterable[nn.Module]) -> bool:
    return _are_all_hooked() or any(
        m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in modules
    )


def _head_of_drafts(head: object) -> Weight | None:
    """Return the head as drafts read it: in 8 bits, since the wrong token that costs now and then is only a draft.

    None where the kernels cannot read it.
    """
    if not isinstance(head, Tensor | PackedWeight) or lib.why_not_weight(head) is not None:
        return None
    try:
        return quantize(head, "int8") if isinstance(head, Tensor) else head
    except ConfigError:  # values that no scale holds
        return head


def _are_all_hooked() -> bool:
    everywhere: Any = torch.nn.modules.module
    return bool(everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks)


def _why_not_model(model: CausalLM, missing: int) -> str | None:
    network = model.model
    if missing or network.before is not None or not isinstance(network.norm, RMSNorm):
        return "parts of the model are elsewhere"
    if (network.stream_dtype or network.word_embeddings.weight.dtype) != torch.float32:
        return "activations are not torch.float32"
    around = [model, network, network.word_embeddings, network.norm]
    return "hooks look into the model" if _has_hooks(around) else None


def _why_not_blocks(blocks: list[Block]) -> str | None:
    modules = [m for block in blocks for m in block.modules()]
    if _is_steered(m for m in modules if isinstance(m, Linear | SparseMoe)):
        return "products or experts are computed in another way"
    return "hooks look into the layers" if _has_hooks(modules) else None


def _weights(block: Block, store: BlockStore) -> LayerWeights:
    mlp = block.mlp
    return LayerWeights(
        block.input_layernorm.weight,
        block.attention.weights(),
        block.attention.heads,
        store,
        block.post_attention_layernorm.weight,
        (mlp.weights(), mlp.rule) if isinstance(mlp, SparseMoe) else mlp.quantities(),
    )


def _join(block: MtpBlock) -> JoinWeights:
    return JoinWeights(block.enorm.weight, block.hnorm.weight, quantity_of(block.eh_proj))
