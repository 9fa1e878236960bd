"""A GGUF file of architecture `bailingmoe2` as a source: sizes, tokenizer and tensors, packed ones as values.

Files by others are read too, with every type that the `gguf` package unpacks. What such a file does not say (how the
MTP loss is weighed, how weights were initialised) is as in a configuration that does not say it either.
"""

import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ling.checkpoint.gguf import MAGIC, open_gguf
from ling.checkpoint.gguf_blocks import library
from ling.checkpoint.gguf_layout import EMBEDDING, HEAD, gguf_layout
from ling.checkpoint.gguf_metadata import ARCHITECTURE, PRE_TOKENIZER, yarn_derived_factor
from ling.checkpoint.names import Piece, published_pieces
from ling.checkpoint.source import read_json
from ling.config import ModelConfig, RopeScaling
from ling.errors import CheckpointError, LingError
from ling.tokenizer import Tokenizer
from ling.tokenizer.bpe import assemble_bpe
from ling.tokenizer.files import CONFIG
from ling.tokenizer.special import CHAT, DOCUMENT_END, Roles

if TYPE_CHECKING:
    from gguf.gguf_reader import GGUFReader, ReaderTensor

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_REQUIRED: Any = object()


class GgufPieces:
    """A file; MTP layers are there if their tensors are."""

    kind = "GGUF file"
    shares: tuple[float, ...] = (1.0,)

    def __init__(self, path: Path) -> None:
        self.directory = path
        reader = open_gguf(path)
        self._tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in reader.tensors}
        self._facts = _Facts(path, reader)
        self.config = read_gguf_config(self._facts, self._tensors)
        self._layout = gguf_layout(self.config)
        self._written: tempfile.TemporaryDirectory[str] | None = None
        self._check_tensors()

    @property
    def directories(self) -> tuple[Path, ...]:
        return (self.directory,)

    def read(self, piece: Piece) -> Tensor:
        place = self._layout(piece)
        tensor = self._tensors[place.key]
        data = tensor.data if place.expert is None else tensor.data[place.expert]
        return _values(data, tensor.tensor_type).reshape(piece.shape)

    def release(self) -> None:
        pass

    def dtype(self, piece: Piece) -> torch.dtype:
        return _PLAIN.get(self._tensors[self._layout(piece).key].tensor_type.name, torch.float32)

    def reopen(self) -> "GgufPieces":
        return self  # nothing but mapped memory, which threads may share

    def tokenizer_files(self) -> list[Path]:
        """Write the tokenizer's files, once, where they stay as long as this source; none for another pre-tokenizer."""
        if self._written is None:
            self._written = tempfile.TemporaryDirectory(prefix="ling-tokenizer-")
            write_tokenizer(self._facts, Path(self._written.name))
        return sorted(Path(self._written.name).iterdir())

    def _check_tensors(self) -> None:
        for key, shape in {(p.key, p.shape): None for p in map(self._layout, published_pieces(self.config))}:
            if key not in self._tensors:
                raise CheckpointError(f"{self.directory} lacks the tensor {key}, which its sizes promise")
            found = tuple(int(size) for size in self._tensors[key].shape[::-1])
            if math.prod(found) != math.prod(shape) or found[-1] != shape[-1]:
                raise CheckpointError(f"{self.directory}: tensor {key} is {found}, its sizes mean {shape}")


def is_gguf(path: Path) -> bool:
    """Whether a file begins as one."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


class _Facts:
    """What the file says beside tensors; CheckpointError names the key that is missing or of another type."""

    def __init__(self, path: Path, reader: "GGUFReader") -> None:
        self.path = path
        self._fields = reader.fields
        found = self.get("general.architecture", str)
        if found != ARCHITECTURE:
            raise CheckpointError(f"{path} holds a network of architecture {found!r}, not {ARCHITECTURE}")

    def get(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        if key not in self._fields:
            if default is _REQUIRED:
                raise CheckpointError(f"{self.path} does not say {key}; it cannot be read")
            return default
        try:
            value = self._fields[key].contents()
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {key} cannot be read: {error}") from None
        if kind is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise CheckpointError(f"{self.path}: {key} is a {type(value).__name__}, it must be a {kind.__name__}")
        return value

    def strings(self, key: str, default: Any = _REQUIRED) -> list[str]:
        values: list[str] = self.get(key, list, default)
        if not all(isinstance(value, str) for value in values):
            raise CheckpointError(f"{self.path}: {key} must be a list of texts")
        return values

    def of_network(self, key: str, kind: type = int, default: Any = _REQUIRED) -> Any:
        return self.get(f"{ARCHITECTURE}.{key}", kind, default)


def read_gguf_config(facts: _Facts, tensors: dict[str, "ReaderTensor"]) -> ModelConfig:
    """Return the network of a file; CheckpointError if it is not one of this family's."""
    of = facts.of_network
    num_blocks, depth = of("block_count"), of("nextn_predict_layers", int, 0)
    if not 0 <= depth < num_blocks <= len(tensors):
        raise CheckpointError(
            f"{facts.path} says {num_blocks} blocks, {depth} of them for MTP, for {len(tensors)} tensors"
        )
    if EMBEDDING not in tensors:
        raise CheckpointError(f"{facts.path} lacks the tensor {EMBEDDING}")
    if (function := of("expert_gating_func", int, 2)) != library().ExpertGatingFuncType.SIGMOID:
        raise CheckpointError(f"{facts.path} routes by function {function}; this family's is 2, sigmoid")
    num_layers, has_mtp = num_blocks - depth, f"blk.{num_blocks - 1}.nextn.eh_proj.weight" in tensors
    sparse = of("leading_dense_block_count")
    shared = tensors.get(f"blk.{sparse}.ffn_gate_shexp.weight")
    num_shared, groups = of("expert_shared_count", int, 1), of("expert_group_count", int, 0) or 1
    heads = of("attention.head_count")
    try:
        return ModelConfig(
            vocab_size=int(tensors[EMBEDDING].shape[-1]),
            hidden_size=of("embedding_length"), num_hidden_layers=num_layers,
            intermediate_size=of("feed_forward_length"), first_k_dense_replace=sparse,
            num_attention_heads=heads, num_key_value_heads=of("attention.head_count_kv"),
            head_dim=of("attention.key_length", int, of("embedding_length") // max(heads, 1)),
            num_experts=of("expert_count"), num_experts_per_tok=of("expert_used_count"),
            moe_intermediate_size=of("expert_feed_forward_length"), num_shared_experts=num_shared,
            moe_shared_expert_intermediate_size=None if shared is None else int(shared.shape[1]) // max(num_shared, 1),
            n_group=groups, topk_group=of("expert_group_used_count", int, 0) or groups,
            routed_scaling_factor=_shortest(of("expert_weights_scale", float, 1.0)),
            moe_router_enable_expert_bias=f"blk.{sparse}.exp_probs_b.bias" in tensors,
            max_position_embeddings=of("context_length"), rope_theta=_shortest(of("rope.freq_base", float)),
            rotary_dim=of("rope.dimension_count"), rope_scaling=_rope_scaling(facts),
            num_nextn_predict_layers=depth if has_mtp else 0,
            rms_norm_eps=_shortest(of("attention.layer_norm_rms_epsilon", float)),
            tie_word_embeddings=HEAD not in tensors,
            pad_token_id=facts.get("tokenizer.ggml.padding_token_id", int, None), eos_token_id=_ends(facts) or None,
            torch_dtype="float32" if tensors[EMBEDDING].tensor_type.name == "F32" else "bfloat16",
        )  # fmt: skip
    except LingError as error:
        raise CheckpointError(f"{facts.path} describes no network that can be: {error}") from None


def write_tokenizer(facts: _Facts, directory: Path) -> None:
    """Write the tokenizer of a file as Hugging Face's files; nothing if it is not Ling's byte-level one."""
    ling = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": PRE_TOKENIZER}
    if any(facts.get(key, str, None) != value for key, value in ling.items()):
        return
    kinds = library().TokenType
    tokens, types = facts.strings("tokenizer.ggml.tokens"), facts.get("tokenizer.ggml.token_type", list)
    vocab = {token: id for id, (token, kind) in enumerate(zip(tokens, types)) if kind != kinds.UNUSED}
    merges = [tuple(merge.split(" ", 1)) for merge in facts.strings("tokenizer.ggml.merges")]
    special, plain = (
        [t for t, id in vocab.items() if types[id] == kind] for kind in (kinds.CONTROL, kinds.USER_DEFINED)
    )
    roles = Roles(
        bos=_token(facts, "bos", tokens, CHAT.bos), eos=_token(facts, "eos", tokens, CHAT.eos),
        pad=_token(facts, "padding", tokens, CHAT.pad), stop_ids=_ends(facts),
    )  # fmt: skip
    serialized = assemble_bpe(vocab, merges, special, plain, where=str(facts.path)).to_str()
    Tokenizer(serialized, roles, where=str(facts.path)).save(directory, chat=roles.eos == CHAT.eos)
    if (template := facts.get("tokenizer.chat_template", str, None)) is not None:
        (directory / CONFIG).write_text(
            json.dumps({**read_json(directory / CONFIG), "chat_template": template}, indent=2, ensure_ascii=False)
            + "\n",
            encoding="utf-8",
        )


def _token(facts: _Facts, role: str, tokens: list[str], default: str) -> str:
    id = facts.get(f"tokenizer.ggml.{role}_token_id", int, None)
    if id is None:
        return default
    if not 0 <= id < len(tokens):
        raise CheckpointError(f"{facts.path}: {role} is token {id} of {len(tokens)}")
    return tokens[id]


def _ends(facts: _Facts) -> tuple[int, ...]:
    """Return the ids that llama.cpp stops at: the two it is told, and the one it knows by its spelling."""
    told = [facts.get(f"tokenizer.ggml.{name}_token_id", int, None) for name in ("eos", "eot")]
    tokens = facts.strings("tokenizer.ggml.tokens", [])
    known = [tokens.index(DOCUMENT_END)] if DOCUMENT_END in tokens else []
    return tuple(sorted({id for id in (*told, *known) if id is not None}))


def _rope_scaling(facts: _Facts) -> RopeScaling | None:
    kind = facts.of_network("rope.scaling.type", str, "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise CheckpointError(f"{facts.path} stretches rotations by {kind!r}; known: linear, yarn")
    factor = _shortest(facts.of_network("rope.scaling.factor", float))
    if kind == "linear":
        return RopeScaling(type="linear", factor=factor)
    derived = yarn_derived_factor(factor)
    times = facts.of_network("rope.scaling.attn_factor", float, 1.0)
    return RopeScaling(
        type="yarn", factor=factor,
        original_max_position_embeddings=facts.of_network("rope.scaling.original_context_length"),
        attention_factor=None if abs(times - 1.0) < 1e-6 else _shortest(times * derived),
    )  # fmt: skip


def _values(data: "np.ndarray[Any, Any]", kind: Any) -> Tensor:
    """Return the values of rows as they lie in the file; packed types as float32."""
    if kind.name == "BF16":
        return torch.from_numpy(np.ascontiguousarray(data).view(np.int16).copy()).view(torch.bfloat16)
    if kind.name in ("F32", "F16"):
        return torch.from_numpy(np.array(data))
    return torch.from_numpy(library().quants.dequantize(np.ascontiguousarray(data), kind))


def _shortest(value: float) -> float:
    """Return the shortest decimal that is the same float32: files hold 1e-6 as 9.99999997e-07."""
    return float(str(np.float32(value)))
