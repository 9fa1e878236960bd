"""What a GGUF file says beside its tensors: the network's sizes and the tokenizer, under llama.cpp's keys.

llama.cpp takes a missing key as a default of its own, so every key that its loader of `bailingmoe2` reads is written.
"""

import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ling.config import ModelConfig, RopeScaling
from ling.errors import CheckpointError
from ling.ops.rope import yarn_attention_factor
from ling.tokenizer import Tokenizer
from ling.tokenizer.byte_level import ling_pre_tokenizer
from ling.tokenizer.files import CONFIG, read_serialized
from ling.tokenizer.special import TURN_END

if TYPE_CHECKING:
    from gguf import GGUFWriter

logger = logging.getLogger(__name__)

ARCHITECTURE = "bailingmoe2"
PRE_TOKENIZER = "bailingmoe2"
"""llama.cpp's name of Ling's pre-tokenizer."""
JINJA_NAME = "chat_template.jinja"

_PROBES = (
    "The year's 365 days, isn't IT'S  so?\n\n  def f(x):\n\treturn x**2  # 12.5%\r\n",
    "\u767e\u7075\u5927\u6a21\u578b2.0\uff0c\u4f60\u597d\uff01 \u00e9t\u00e9 \u041c\u0438\u0440 \U0001f680  ",
)


def add_model(writer: "GGUFWriter", model: ModelConfig) -> None:
    """Add the network's sizes and rules."""
    from gguf import ExpertGatingFuncType

    writer.add_block_count(model.num_stored_layers)
    writer.add_nextn_predict_layers(model.num_nextn_predict_layers)
    writer.add_vocab_size(model.vocab_size)
    writer.add_context_length(model.max_position_embeddings)
    writer.add_embedding_length(model.hidden_size)
    writer.add_feed_forward_length(model.intermediate_size)
    writer.add_leading_dense_block_count(model.first_k_dense_replace)
    writer.add_layer_norm_rms_eps(model.rms_norm_eps)
    writer.add_head_count(model.num_attention_heads)
    writer.add_head_count_kv(model.num_key_value_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_expert_count(model.num_experts)
    writer.add_expert_used_count(model.num_experts_per_tok)
    writer.add_expert_feed_forward_length(model.moe_intermediate_size)
    writer.add_expert_shared_count(model.num_shared_experts)
    writer.add_expert_shared_feed_forward_length(model.shared_expert_dim // model.num_shared_experts)
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_norm(model.num_experts_per_tok > 1)  # one expert keeps its score
    writer.add_expert_weights_scale(model.routed_scaling_factor)
    # llama.cpp refuses groups that exclude nothing.
    grouped = model.topk_group < model.n_group
    writer.add_expert_group_count(model.n_group if grouped else 0)
    writer.add_expert_group_used_count(model.topk_group if grouped else 0)
    writer.add_rope_dimension_count(model.rotated_dim)
    writer.add_rope_freq_base(model.rope_theta)
    _add_rope_scaling(writer, model.rope_scaling)


def _add_rope_scaling(writer: "GGUFWriter", scaling: RopeScaling | None) -> None:
    from gguf import RopeScalingType

    if scaling is None:
        writer.add_rope_scaling_type(RopeScalingType.NONE)
        return
    writer.add_rope_scaling_type(RopeScalingType(scaling.type))
    writer.add_rope_scaling_factor(scaling.factor)
    if scaling.type == "yarn":
        assert scaling.original_max_position_embeddings is not None
        writer.add_rope_scaling_orig_ctx_len(scaling.original_max_position_embeddings)
        writer.add_rope_scaling_attn_factors(yarn_attention_factor(scaling) / yarn_derived_factor(scaling.factor))


def yarn_derived_factor(factor: float) -> float:
    """Return what llama.cpp multiplies the stored attention factor by, from the ratio of contexts."""
    return 0.1 * math.log(factor) + 1.0


def add_tokenizer(writer: "GGUFWriter", directory: Path, vocab_size: int) -> None:
    """Add the tokenizer of `directory`, with unused tokens up to `vocab_size`; CheckpointError if it is not Ling's."""
    tokenizer = Tokenizer.from_directory(directory)
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"the tokenizer in {directory} has {tokenizer.vocab_size} tokens, the model {vocab_size} rows for them; "
            "use the one that belongs to the model"
        )
    serialized = read_serialized(directory)
    _check_cuts_as_ling(serialized, directory)
    content = json.loads(serialized)
    tokens, types = _tokens(content, tokenizer, vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    # llama.cpp stops at eos, at eot, and at <|endoftext|>, which it knows by its spelling.
    (turn_end,) = tokenizer.encode(TURN_END)
    if turn_end in tokenizer.stop_ids:
        writer.add_eot_token_id(turn_end)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    if (template := _chat_template(directory)) is not None:
        writer.add_chat_template(template)


def _check_cuts_as_ling(serialized: str, directory: Path) -> None:
    """Refuse a tokenizer that llama.cpp, told that it is Ling's, would read as another one."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(serialized)
    expected = [ling_pre_tokenizer().pre_tokenize_str(text) for text in _PROBES]
    found = [backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer else [] for text in _PROBES]
    if not isinstance(backend.model, tokenizers.models.BPE) or found != expected or backend.model.ignore_merges:
        raise CheckpointError(
            f"the tokenizer in {directory} does not cut text as Ling 2.0's does, and llama.cpp knows only that one for "
            "this architecture; use the tokenizer that belongs to the model"
        )
    if backend.normalizer is not None:
        logger.warning("%s: llama.cpp will not normalise text as this tokenizer does", directory)


def _tokens(content: dict[str, Any], tokenizer: Tokenizer, vocab_size: int) -> tuple[list[str], list[int]]:
    """List every id's spelling and its type; ids without a token are unused."""
    from gguf import TokenType

    tokens = [f"[PAD{id}]" for id in range(vocab_size)]
    types = [int(TokenType.UNUSED)] * vocab_size
    for token, id in content["model"]["vocab"].items():
        tokens[id], types[id] = token, int(TokenType.NORMAL)
    for added in content.get("added_tokens") or []:
        kind = TokenType.CONTROL if tokenizer.is_special(added["id"]) else TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], int(kind)
    return tokens, types


def _chat_template(directory: Path) -> Any:
    """Return the chat template as transformers finds it, or None: a text, or a list of named ones."""
    if (file := directory / JINJA_NAME).is_file():
        return file.read_text(encoding="utf-8")
    file = directory / CONFIG
    template = json.loads(file.read_text(encoding="utf-8")).get("chat_template") if file.is_file() else None
    named = isinstance(template, list) and all(
        isinstance(t, dict) and {"name", "template"} <= t.keys() for t in template
    )
    if template is not None and not isinstance(template, str) and not named:
        raise CheckpointError(f"chat_template in {file} must be a text, or a list of named ones")
    return template
