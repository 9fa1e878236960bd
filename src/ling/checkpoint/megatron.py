"""Megatron's `torch_dist` checkpoints: where they lie, what `common.pt` says of the model (spec: checkpoint.md 2, 4).

DIR/latest_checkpointed_iteration.txt
DIR/iter_0000001/   .metadata, __0_0.distcp ...   tensors
                    common.pt                     pickled `{"args": Namespace, ...}`
                    metadata.json                 names of the back ends
"""

import argparse
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ling.checkpoint.restricted_pickle import read_plain_values
from ling.config import ModelConfig, read_published, write_published
from ling.config.fields import shown
from ling.errors import CheckpointError

COMMON_NAME = "common.pt"
LATEST_NAME = "latest_checkpointed_iteration.txt"
FIRST_ITERATION = "iter_0000001"

_BACKENDS = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
# What the recipes' networks are; any other value, where the arguments have it, is another network.
_FIXED = {
    "normalization": "RMSNorm", "position_embedding_type": "rope", "swiglu": True, "apply_layernorm_1p": False,
    "rotary_interleaved": False, "multi_latent_attention": False, "use_rope_scaling": False,
}  # fmt: skip
_NOTE = "ling_config"
_NOTED = ("rope_scaling", "eos_token_id", "pad_token_id")
"""Published keys that no argument of Megatron's stands for: we note them beside its own, which it leaves alone."""
_PUBLISHED_SPECIAL_ID = 156892
_MOST_DIGITS = 12
_LARGEST_PICKLE = 64 * 2**20


def find_iteration(directory: Path) -> Path | None:
    """Return the iteration to read: `directory` itself, or the latest one below it; None if it is not Megatron's."""
    if (directory / COMMON_NAME).is_file():
        return directory
    latest = directory / LATEST_NAME
    if not latest.is_file():
        return None
    text = latest.read_text(encoding="utf-8", errors="replace").strip()
    if not (text.isdecimal() and text.isascii() and len(text) <= _MOST_DIGITS):
        raise CheckpointError(f"{latest} says {text[:40]!r}, not an iteration; point at one of its iter_ directories")
    iteration = directory / f"iter_{int(text):07d}"
    if not (iteration / COMMON_NAME).is_file():
        raise CheckpointError(f"{latest} says {text}, but {iteration} is not a checkpoint")
    return iteration


def read_args(iteration: Path) -> dict[str, Any]:
    """Return the training arguments in `common.pt`, plain values only; nothing in the pickle is run."""
    path = iteration / COMMON_NAME
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
            if archive.getinfo(name).file_size > _LARGEST_PICKLE:
                raise CheckpointError(f"{path} has a pickle of more than {_LARGEST_PICKLE >> 20} MiB; it is not read")
            content = archive.read(name)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy the checkpoint again") from None
    common = read_plain_values(content, str(path))
    args = common.get("args") if isinstance(common, dict) else None
    if not isinstance(args, argparse.Namespace):
        raise CheckpointError(f"{path} has no args: it is not a Megatron checkpoint")
    return vars(args)


def config_from_args(
    args: dict[str, Any],
    num_mtp_layers: int,
    where: str,
    *,
    vocab_rows: int | None = None,
    special_ids: Mapping[str, int] | None = None,
) -> ModelConfig:
    """Return the model of a Megatron checkpoint, as the published converter reads it.

    vocab_rows   of the stored embedding: Megatron pads it for its tensor parallelism, whatever the arguments say
    special_ids  `eos_token_id` and `pad_token_id` of the tokenizer; left out: the published one's, if they fit
    head_dim comes from kv_channels where the arguments have it (the converter assumes hidden_size / heads). What no
    argument stands for comes from the note that `args_from_config` leaves.
    """
    for name, allowed in _FIXED.items():
        if args.get(name) is not None and args[name] != allowed:
            raise CheckpointError(
                f"{where}: args.{name} {shown(args[name])} is another network; Ling 2.0 has {allowed}"
            )

    def need(name: str) -> Any:
        if args.get(name) is None:
            raise CheckpointError(f"{where} lacks args.{name}")
        return args[name]

    def count(name: str) -> int:
        return _positive(need(name), f"{where}: args.{name}")

    heads, hidden = count("num_attention_heads"), count("hidden_size")
    groups = heads if args.get("group_query_attention") is False else args.get("num_query_groups") or heads
    if vocab_rows is not None and (args.get("vocab_size") is None or vocab_rows >= count("vocab_size")):
        vocab = vocab_rows
    else:
        multiple = count("make_vocab_size_divisible_by") if args.get("make_vocab_size_divisible_by") else 1
        vocab = _round_up(count("vocab_size"), multiple)
    special = _PUBLISHED_SPECIAL_ID if vocab > _PUBLISHED_SPECIAL_ID else None
    shared_width = args.get("moe_shared_expert_intermediate_size")
    published = {
        "architectures": ["BailingMoeV2ForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": need("num_layers"),
        "intermediate_size": need("ffn_hidden_size"),
        "first_k_dense_replace": _first_k_dense(args) if args.get("num_experts") else need("num_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": args.get("kv_channels") or hidden // heads,
        "use_qk_norm": bool(args.get("qk_layernorm")),
        "use_qkv_bias": bool(args.get("add_qkv_bias")),
        "use_bias": bool(args.get("add_bias_linear")),
        "num_experts": 0,
        "num_experts_per_tok": 0,
        "moe_intermediate_size": 0,
        "num_shared_experts": 1 if shared_width else 0,
        "moe_shared_expert_intermediate_size": shared_width,
        "n_group": 0,
        "topk_group": 0,
        "routed_scaling_factor": args.get("moe_router_topk_scaling_factor") or 1.0,
        "moe_router_enable_expert_bias": bool(args.get("moe_router_enable_expert_bias")),
        "max_position_embeddings": need("seq_length"),
        "rope_theta": need("rotary_base"),
        "partial_rotary_factor": args.get("rotary_percent", 1.0),
        "rms_norm_eps": need("norm_epsilon"),
        "tie_word_embeddings": not args.get("untie_embeddings_and_output_weights", True),
        "num_nextn_predict_layers": num_mtp_layers,
        "mtp_loss_scaling_factor": args.get("mtp_loss_scaling_factor") or 0.0,
        "initializer_range": args.get("init_method_std"),
        "eos_token_id": special,
        "pad_token_id": special,
    }
    if args.get("num_experts"):
        published |= {
            "num_experts": need("num_experts"),
            "num_experts_per_tok": need("moe_router_topk"),
            "moe_intermediate_size": need("moe_ffn_hidden_size"),
            "n_group": args.get("moe_router_num_groups") or 0,
            "topk_group": args.get("moe_router_group_topk") or 0,
            "score_function": args.get("moe_router_score_function") or "softmax",
        }
    note = args.get(_NOTE)
    noted = {key: note[key] for key in _NOTED if key in note} if isinstance(note, dict) else {}
    return read_published({**published, **(special_ids or {}), **noted}, where=where)


def args_from_config(model: ModelConfig) -> argparse.Namespace:
    """Return the arguments that `config_from_args`, and the published converter, turn back into `model`."""
    return argparse.Namespace(
        num_layers=model.num_hidden_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.intermediate_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_key_value_heads,
        group_query_attention=True,
        kv_channels=model.head_dim,
        qk_layernorm=model.use_qk_norm,
        add_qkv_bias=model.use_qkv_bias,
        add_bias_linear=model.use_bias,
        moe_layer_freq=[int(model.is_moe(layer)) for layer in range(model.num_hidden_layers)],
        first_k_dense_replace=model.first_k_dense_replace,
        num_experts=model.num_experts or None,
        moe_ffn_hidden_size=model.moe_intermediate_size,
        moe_shared_expert_intermediate_size=model.shared_expert_dim or None,
        moe_router_topk=model.num_experts_per_tok,
        moe_router_num_groups=model.n_group or None,
        moe_router_group_topk=model.topk_group or None,
        moe_router_topk_scaling_factor=model.routed_scaling_factor,
        moe_router_enable_expert_bias=model.moe_router_enable_expert_bias,
        moe_router_score_function="sigmoid",
        moe_router_dtype="fp32",
        rotary_base=model.rope_theta,
        rotary_percent=model.rotated_dim / model.head_dim,
        position_embedding_type="rope",
        normalization="RMSNorm",
        norm_epsilon=model.rms_norm_eps,
        swiglu=True,
        untie_embeddings_and_output_weights=not model.tie_word_embeddings,
        seq_length=model.max_position_embeddings,
        max_position_embeddings=model.max_position_embeddings,
        vocab_size=model.vocab_size,
        padded_vocab_size=model.vocab_size,
        make_vocab_size_divisible_by=1,
        mtp_num_layers=model.num_nextn_predict_layers or None,
        mtp_loss_scaling_factor=model.mtp_loss_scaling_factor,
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        expert_model_parallel_size=1,
        params_dtype="torch.bfloat16",
        init_method_std=model.initializer_range,
        fp8=None,
        iteration=1,
        **{_NOTE: {key: value for key, value in write_published(model).items() if key in _NOTED}},
    )


def write_common(iteration: Path, model: ModelConfig) -> None:
    """Write what stands beside the tensors of an iteration."""
    common = {"args": args_from_config(model), "checkpoint_version": 3.0, "iteration": 1}
    buffer = io.BytesIO()
    torch.save(common, buffer)
    (iteration / COMMON_NAME).write_bytes(buffer.getvalue())
    (iteration / "metadata.json").write_text(json.dumps(_BACKENDS), encoding="utf-8")


def _first_k_dense(args: dict[str, Any]) -> int:
    """Return how many layers are dense, under any of its three names."""
    for name in ("first_k_dense", "first_k_dense_replace"):
        if args.get(name):
            return _positive(args[name], f"args.{name}")
        if args.get(name) is not None:
            return 0
    frequency = args.get("moe_layer_freq", 1)
    told = f"args.moe_layer_freq {shown(frequency)}"
    if isinstance(frequency, int):
        if frequency != 1:
            raise CheckpointError(f"{told}: a sparse layer now and then is another network")
        return 0
    if not isinstance(frequency, list):
        raise CheckpointError(f"{told} must be a list with a number per layer")
    first = frequency.index(1) if 1 in frequency else len(frequency)
    if any(x != 1 for x in frequency[first:]):
        raise CheckpointError(f"{told}: dense layers above sparse ones are another network")
    return first


def _positive(value: Any, name: str) -> int:
    if type(value) is not int or not 0 < value < 2**63:
        raise CheckpointError(f"{name} must be a positive integer, got {shown(value)}")
    return value


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
