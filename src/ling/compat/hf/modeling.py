"""`LingForCausalLM`: the one network of `ling.model` behind the interface of transformers.

A padded batch is packed into the flat row of tokens that the network sees, keys and values go to a cache of
transformers, and hidden states are laid back into the batch for the head.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import __version__
from transformers.cache_utils import DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel, load_state_dict
from transformers.utils import logging

from ling.compat.hf.configuration import LingConfig
from ling.compat.hf.padded import ATTENTION, Layout, PaddedBatch
from ling.compat.hf.weights import take_experts, to_model, to_published
from ling.errors import CheckpointError, RequestError
from ling.model.batch import shift_within
from ling.model.linear import Linear, quantity_of
from ling.model.norm import RMSNorm
from ling.model.transformer import Transformer
from ling.ops.cross_entropy import IGNORE
from ling.ops.linear import linear
from ling.ops.precision import at_least_float32
from ling.ops.ragged import Ragged
from ling.ops.router import Routing

logger = logging.get_logger(__name__)


@dataclass
class LingOutput(MoeCausalLMOutputWithPast):
    """What transformers' sparse models return, and the MTP losses.

    router_logits  per sparse layer the router's logits (B, S, E) and its choice (B, S, k)
    """

    mtp_loss: tuple[Tensor, ...] | None = None
    """Per depth the mean nats per slot, detached; `loss` contains them times mtp_loss_scaling_factor."""


class LingForCausalLM(PreTrainedModel, GenerationMixin):
    """A BailingMoeV2 language model; parameters have the published names, routed experts are stacked."""

    config_class = LingConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    gradient_checkpointing = False
    _no_split_modules = ["Block", "MtpBlock"]  # noqa: RUF012 (transformers wants lists here)
    _supports_sdpa = True
    _tied_weights_keys = {"lm_head.weight": "model.word_embeddings.weight"}  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"inv_freq$", r"v_head"]  # noqa: RUF012

    def __init__(self, config: LingConfig) -> None:
        super().__init__(config)
        network = config.to_ling()
        self.model = Transformer(network)
        self.lm_head: nn.Module = Linear(network.hidden_size, network.vocab_size)
        self._keep_in_fp32_modules_strict = set(_ROUTER if network.num_moe_layers else ())
        self.register_load_state_dict_pre_hook(_accept_published_experts)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router_logits: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        **unused: Any,
    ) -> Any:
        """Run the model over a padded batch.

        input_ids           (B, S); or inputs_embeds (B, S, H)
        attention_mask      (B, cached + S), 0 for padding on either side
        position_ids        (B, S); where they restart within a row, another document begins (without padding or cache)
        labels              (B, S) as input_ids, -100 where nothing is learnt; shifted here
        num_items_in_batch  labels of all microbatches of a step, by which summed losses are then divided
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise RequestError("give either input_ids or inputs_embeds")
        implementation = self._attention(output_attentions)
        given = inputs_embeds if input_ids is None else input_ids
        assert given is not None
        use_cache = self._use_cache(use_cache, labels)
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache(config=self.config)
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        layout = Layout((given.shape[0], given.shape[1]), past, attention_mask, position_ids, given.device)
        tokens = None if input_ids is None else layout.pack(input_ids)
        rows = Ragged(layout.lengths(), given.device) if labels is not None else None
        mtp_ids = self._tokens_ahead(tokens, rows, past)
        batch = PaddedBatch(
            layout,
            past_key_values,
            self.config.num_hidden_layers,
            implementation,
            mtp_ids,
            [] if self._wanted("output_attentions", output_attentions) else None,
        )
        hidden_states: list[Tensor] | None = [] if self._wanted("output_hidden_states", output_hidden_states) else None
        with _own_precision(given.device), _inputs_of(self._main_blocks(), hidden_states):
            output = self.model(
                tokens,
                layout.pack(layout.positions),
                batch,
                embeddings=None if inputs_embeds is None else layout.pack(inputs_embeds),
                run=self._run_block,
            )
            padded = layout.unpack(output.hidden)
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self._logits(padded[:, kept])
            losses: list[Tensor] = []
            if labels is not None and rows is not None:
                whole = isinstance(logits_to_keep, int) and logits_to_keep == 0
                first = layout.pack(logits) if whole else self._logits(output.hidden)
                heads = [first, *map(self._logits, output.mtp_hidden)]
                losses = _cross_entropies(heads, layout.pack(labels), rows, num_items_in_batch)
        result = LingOutput(
            loss=losses[0] + self.config.mtp_loss_scaling_factor * sum(losses[1:]) if losses else None,
            mtp_loss=tuple(x.detach() for x in losses[1:]) or None,
            logits=logits,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=None if hidden_states is None else (*map(layout.unpack, hidden_states), padded),
            attentions=None if batch.attentions is None else tuple(batch.attentions),
            router_logits=self._router_logits(layout, output.routings, output_router_logits),
        )
        wanted = self.config.return_dict if return_dict is None else return_dict
        return result if wanted else result.to_tuple()

    # ---- what transformers asks a model for ----

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.model.word_embeddings
        return embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.word_embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    @classmethod
    def from_pretrained(cls, name: Any, *arguments: Any, config: Any = None, **options: Any) -> Any:
        """Load a published checkpoint, as `PreTrainedModel.from_pretrained`; FP8 blocks become values.

        Raises CheckpointError for another quantisation, or if a tensor is missing.
        """
        if config is None and name is not None:
            config = LingConfig.from_pretrained(name, **{k: v for k, v in options.items() if k in _WHERE})
            for key in [key for key in options if key in config.to_dict() and key != "dtype"]:
                setattr(config, key, options.pop(key))
        return super().from_pretrained(name, *arguments, config=_without_fp8(config), **options)

    def save_pretrained(self, save_directory: Any, *arguments: Any, **options: Any) -> Any:
        """Save in the published layout, one tensor per expert, as `PreTrainedModel.save_pretrained`."""
        if not getattr(self, "_hf_peft_config_loaded", False):
            state = options.pop("state_dict", None)
            options["state_dict"] = to_published(self.state_dict() if state is None else state, self.config.to_ling())
        return super().save_pretrained(save_directory, *arguments, **options)

    @classmethod
    def _load_pretrained_model(
        cls, model: Any, state_dict: Any, checkpoint_files: Any, *arguments: Any, **options: Any
    ) -> Any:
        """Stack the experts on the way from files to `model`; transformers 4.57 has no other place for it."""
        if state_dict is None:
            state_dict = {}
            for file in checkpoint_files:
                state_dict |= load_state_dict(file, map_location="cpu")
            if "sharded_metadata" in options:
                options["sharded_metadata"] = None
        state_dict = to_model(dict(state_dict), model, model.config.to_ling())
        return super()._load_pretrained_model(model, state_dict, None, *arguments, **options)

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
            return
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, 0.0, std)
        for name, buffer in module.named_buffers(recurse=False):
            if name == "expert_bias":
                nn.init.zeros_(buffer)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                nn.init.zeros_(module.weight[module.padding_idx])

    # ---- parts of forward ----

    def _attention(self, output_attentions: bool | None) -> str:
        implementation = self.config._attn_implementation
        if implementation not in ATTENTION:
            raise RequestError(f"attention {implementation} is not supported; use {' or '.join(ATTENTION)}")
        if self._wanted("output_attentions", output_attentions) and implementation != "eager":
            raise RequestError(f"{implementation} attention keeps no weights; load with attn_implementation='eager'")
        return implementation

    def _wanted(self, name: str, given: bool | None) -> bool:
        return bool(getattr(self.config, name, False) if given is None else given)

    def _use_cache(self, given: bool | None, labels: Tensor | None) -> bool:
        if self.gradient_checkpointing and self.training:
            if given:
                logger.warning_once("use_cache is off while gradient checkpointing recomputes blocks")
            return False
        return bool((self.config.use_cache and labels is None) if given is None else given)

    def _run_block(self, block: Any, *arguments: Any) -> Any:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(block, *arguments)
        return block(*arguments)

    def _main_blocks(self) -> list[nn.Module]:
        return list(self.model.layers[: self.config.num_hidden_layers])

    def _tokens_ahead(self, tokens: Tensor | None, rows: Ragged | None, past: int) -> Tensor | None:
        """Return what MTP layers read, if their loss is wanted and can be had: not behind a cache or without ids."""
        depth = self.config.num_nextn_predict_layers if self.config.mtp_loss_scaling_factor else 0
        if rows is None or tokens is None or past or not depth:
            return None
        return shift_within(tokens, rows, depth, fill=0)

    def _logits(self, hidden: Tensor) -> Tensor:
        return at_least_float32(linear(hidden, quantity_of(self.lm_head)))

    def _router_logits(self, layout: Layout, routings: dict[int, Routing], wanted: bool | None) -> Any:
        if not self._wanted("output_router_logits", wanted):
            return None
        main = [routing for layer, routing in routings.items() if layer < self.config.num_hidden_layers]
        return tuple((layout.unpack(routing.logits), layout.unpack(routing.ids)) for routing in main)


def _cross_entropies(
    logits: list[Tensor], labels: Tensor, rows: Ragged, num_items: Tensor | int | None
) -> list[Tensor]:
    """Return the loss of the next token, and of the one predicted at each MTP depth, from (N, V) logits of each.

    A label is learnt from the token before it in the same sequence, never from padding. Each loss is the mean over
    its own slots, or the sum over `num_items`.
    """
    losses = []
    for scores, wanted in zip(logits, shift_within(labels, rows, len(logits), fill=IGNORE)):
        total = nn.functional.cross_entropy(scores, wanted, ignore_index=IGNORE, reduction="sum")
        losses.append(total / ((wanted != IGNORE).sum().clamp_min(1) if num_items is None else num_items))
    return losses


_ROUTER = ("mlp.gate.weight", "mlp.gate.expert_bias") if int(__version__.split(".")[0]) >= 5 else ("gate",)
"""Tensors that no load casts: transformers 5 searches names for these, 4.57 takes parts between dots."""
_WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
"""Options that say where a configuration is found."""


def _without_fp8(config: Any) -> Any:
    """Return the configuration of the values that FP8 blocks are read into."""
    declared = getattr(config, "quantization_config", None)
    if declared is None:
        return config
    given = declared if isinstance(declared, dict) else declared.to_dict()
    method, block = given.get("quant_method"), list(given.get("weight_block_size") or ())
    if method != "fp8" or block != [128, 128]:
        raise CheckpointError(
            f"config.json: quantization {method} with blocks {block} is not supported; "
            "FP8 checkpoints of this family have quant_method fp8 and weight_block_size [128, 128]"
        )
    config = copy.deepcopy(config)
    del config.quantization_config
    return config


def _accept_published_experts(module: Any, state: Any, prefix: str, *_: Any) -> None:
    take_experts(state, prefix, module, module.config.to_ling())


@contextmanager
def _own_precision(device: torch.device) -> Iterator[None]:
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
