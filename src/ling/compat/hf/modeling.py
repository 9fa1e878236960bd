"""`LingForCausalLM`: `LingModel` with a head and losses, and published files as transformers loads and saves them."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import __version__
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel, load_state_dict

from ling.compat.hf.backbone import LingModel, LingModelOutput, lay_out, own_precision
from ling.compat.hf.configuration import LingConfig
from ling.compat.hf.offloaded import all_tensors
from ling.compat.hf.weights import take_experts, to_model, to_published
from ling.errors import CheckpointError, RequestError
from ling.model.batch import shift_within
from ling.model.linear import Linear
from ling.model.norm import RMSNorm
from ling.ops.cross_entropy import IGNORE
from ling.ops.precision import at_least_float32
from ling.ops.ragged import Ragged


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
    _no_split_modules = ["Block", "MtpBlock"]  # noqa: RUF012 (transformers wants lists here)
    _supports_sdpa = True
    _tied_weights_keys = {"lm_head.weight": "model.word_embeddings.weight"}  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"inv_freq$", r"v_head"]  # noqa: RUF012

    def __init__(self, config: LingConfig) -> None:
        super().__init__(config)
        network = config.to_ling()
        self.model = LingModel(config)
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
        given = self.model.given(input_ids, inputs_embeds)
        layout = lay_out(given, past_key_values, attention_mask, position_ids)
        rows = None if labels is None else Ragged(layout.lengths(), given.device)
        output: LingModelOutput = self.model(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=False if use_cache is None and labels is not None else use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            output_router_logits=output_router_logits,
            layout=layout,
            mtp_ids=self._tokens_ahead(None if input_ids is None else layout.pack(input_ids), rows, layout.past),
        )
        hidden = output.last_hidden_state
        assert hidden is not None
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        losses: list[Tensor] = []
        with own_precision(given.device):
            logits = self._logits(hidden[:, kept])
            if rows is not None and labels is not None:
                whole = isinstance(logits_to_keep, int) and logits_to_keep == 0
                heads = [logits if whole else self._logits(hidden), *map(self._logits, output.mtp_hidden or ())]
                losses = _cross_entropies([*map(layout.pack, heads)], layout.pack(labels), rows, num_items_in_batch)
        result = LingOutput(
            loss=losses[0] + self.config.mtp_loss_scaling_factor * sum(losses[1:]) if losses else None,
            mtp_loss=tuple(x.detach() for x in losses[1:]) or None,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            router_logits=output.router_logits,
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
            state = all_tensors(self) if state is None else state
            options["state_dict"] = to_published(state, self.config.to_ling())
        return super().save_pretrained(save_directory, *arguments, **options)

    @classmethod
    def _load_pretrained_model(
        cls, model: Any, state_dict: Any, checkpoint_files: Any, *arguments: Any, **options: Any
    ) -> Any:
        """Stack the experts on the way from files to `model`; transformers 4.57 has no other place for it."""
        if __version__.startswith("4.") and "disk" in (options.get("device_map") or {}).values():
            raise RequestError(
                f"transformers {__version__} cannot leave parts of Ling on the disk, because experts are stacked while "
                "they are loaded; use transformers 5, or a device_map or max_memory with room for all of it"
            )
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

    def _tokens_ahead(self, tokens: Tensor | None, rows: Ragged | None, past: int) -> Tensor | None:
        """Return what MTP layers read, if their loss is wanted and can be had: not behind a cache or without ids."""
        depth = self.config.num_nextn_predict_layers if self.config.mtp_loss_scaling_factor else 0
        if rows is None or tokens is None or past or not depth:
            return None
        return shift_within(tokens, rows, depth, fill=0)

    def _logits(self, hidden: Tensor) -> Tensor:
        return at_least_float32(self.lm_head(hidden))


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
