"""`LingModel`: the one network of `ling.model` behind transformers' interface of a model without a head.

A padded batch is packed into the flat row of tokens that the network sees, keys and values go to a cache of
transformers, and hidden states are laid back into the batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.utils import logging

from ling.compat.hf.configuration import LingConfig
from ling.compat.hf.offloaded import weights_at_hand
from ling.compat.hf.padded import ATTENTION, Layout, PaddedBatch
from ling.errors import RequestError
from ling.model.transformer import Transformer
from ling.ops.router import Routing

logger = logging.get_logger(__name__)


@dataclass
class LingModelOutput(MoeModelOutputWithPast):
    """What transformers' sparse models return, and the hidden states of MTP layers.

    last_hidden_state  (B, S, H) after the final norm, zeros at padding
    router_logits      per sparse layer the router's logits (B, S, E) and its choice (B, S, k)
    """

    mtp_hidden: tuple[Tensor, ...] | None = None
    """Per depth (B, S, H), input of the head."""


class LingModel(Transformer):
    """Embedding, blocks and final norm, called as transformers calls a model."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Any
    """Set by transformers with the switch above."""

    def __init__(self, config: LingConfig) -> None:
        super().__init__(config.to_ling())
        self.hf_config = config

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router_logits: bool | None = None,
        layout: Layout | None = None,
        mtp_ids: Tensor | None = None,
        **unused: Any,
    ) -> LingModelOutput:
        """Run all layers over a padded batch; arguments as those of `LingForCausalLM.forward`.

        layout   of the batch, if the caller has it already
        mtp_ids  (depth, N) what MTP layers read, in packed order; None: they do not run
        """
        given = self.given(input_ids, inputs_embeds)
        implementation = self._attention(output_attentions)
        if past_key_values is None and self._uses_cache(use_cache):
            past_key_values = DynamicCache(config=self.hf_config)
        layout = layout or lay_out(given, past_key_values, attention_mask, position_ids)
        batch = PaddedBatch(
            layout,
            past_key_values,
            self.config.num_hidden_layers,
            implementation,
            mtp_ids,
            [] if self._wanted("output_attentions", output_attentions) else None,
        )
        hidden_states: list[Tensor] | None = [] if self._wanted("output_hidden_states", output_hidden_states) else None
        main_blocks = list(self.layers[: self.config.num_hidden_layers])
        with own_precision(given.device), _inputs_of(main_blocks, hidden_states):
            output = super().forward(
                None if input_ids is None else layout.pack(input_ids),  # type: ignore[arg-type]
                layout.pack(layout.positions),
                batch,
                embeddings=None if inputs_embeds is None else layout.pack(inputs_embeds),
                run=self._run_block,
            )
        last = layout.unpack(output.hidden)
        return LingModelOutput(
            last_hidden_state=last,
            past_key_values=past_key_values,
            hidden_states=None if hidden_states is None else (*map(layout.unpack, hidden_states), last),
            attentions=None if batch.attentions is None else tuple(batch.attentions),
            router_logits=self._router_logits(layout, output.routings, output_router_logits),
            mtp_hidden=tuple(map(layout.unpack, output.mtp_hidden)) or None,
        )

    def given(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Return the one of the two that was given; RequestError if that is none or both."""
        if (input_ids is None) == (inputs_embeds is None):
            raise RequestError("give either input_ids or inputs_embeds")
        found = inputs_embeds if input_ids is None else input_ids
        assert found is not None
        return found

    def _attention(self, output_attentions: bool | None) -> str:
        implementation: str = self.hf_config._attn_implementation
        if implementation not in ATTENTION:
            raise RequestError(f"attention {implementation} is not supported; use {' or '.join(ATTENTION)}")
        if self._wanted("output_attentions", output_attentions) and implementation != "eager":
            raise RequestError(f"{implementation} attention keeps no weights; load with attn_implementation='eager'")
        return implementation

    def _wanted(self, name: str, given: bool | None) -> bool:
        return bool(getattr(self.hf_config, name, False) if given is None else given)

    def _uses_cache(self, given: bool | None) -> bool:
        if self.gradient_checkpointing and self.training:
            if given:
                logger.warning_once("use_cache is off while gradient checkpointing recomputes blocks")
            return False
        return bool(self.hf_config.use_cache if given is None else given)

    def _run_block(self, block: Any, *arguments: Any) -> Any:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(block, *arguments)
        with weights_at_hand(getattr(block, "__self__", block)):  # of an MTP layer the method `predict` runs
            return block(*arguments)

    def _router_logits(self, layout: Layout, routings: dict[int, Routing], wanted: bool | None) -> Any:
        if not self._wanted("output_router_logits", wanted):
            return None
        main = [routing for layer, routing in routings.items() if layer < self.config.num_hidden_layers]
        return tuple((layout.unpack(routing.logits), layout.unpack(routing.ids)) for routing in main)


def lay_out(given: Tensor, cache: Any, attention_mask: Tensor | None, position_ids: Tensor | None) -> Layout:
    """Return where the tokens of a batch lie: given (B, S) ids or (B, S, H) embeddings."""
    past = 0 if cache is None else int(cache.get_seq_length())
    return Layout((given.shape[0], given.shape[1]), past, attention_mask, position_ids, given.device)


@contextmanager
def own_precision(device: torch.device) -> Iterator[None]:
    """Compute in the dtype of the weights: autocast would round the router, and casts are written out here."""
    if torch.is_autocast_enabled(device.type):
        logger.warning_once(
            "autocast is on, but Ling computes in the dtype of its weights; for bfloat16 arithmetic load the model "
            "with dtype=torch.bfloat16"
        )
    with torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def _inputs_of(blocks: list[nn.Module], found: list[Tensor] | None) -> Iterator[None]:
    """Append the first argument of each block's call to `found`, unless that is None."""
    if found is None:
        yield
        return
    handles = [b.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0])) for b in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
