"""GGUF files: names against llama.cpp's own map, block layouts by hand, metadata, streaming, and what is refused."""

import dataclasses
import json
import shutil
import sys
import weakref
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

import ling.checkpoint.gguf as ling_gguf
from ling.checkpoint import save_model
from ling.checkpoint.convert import to_megatron, to_training, without_mtp
from ling.checkpoint.gguf import open_gguf, plan_gguf, to_gguf, verify_gguf
from ling.checkpoint.gguf_blocks import encode_gguf
from ling.checkpoint.names import Piece, published_pieces
from ling.checkpoint.pieces import SafetensorsPieces, open_pieces
from ling.checkpoint.save import ExportFormat
from ling.config import ModelConfig, RopeScaling
from ling.engine.bundled import bundled_directory
from ling.errors import CheckpointError, ConfigError
from ling.model import CausalLM
from ling.testing.models import tiny_config, tiny_model

BUNDLED = bundled_directory()
SHAPE: dict[str, Any] = {
    "vocab_size": 2080, "head_dim": 16, "rotary_dim": 8, "moe_intermediate_size": 32, "num_shared_experts": 2,
    "moe_shared_expert_intermediate_size": 32, "eos_token_id": (2042, 2045), "pad_token_id": 2042,
}  # fmt: skip
"""Heads as wide as the hidden state, and rows of whole blocks; more rows than the tokenizer has tokens."""


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return tiny_model(seed=5, **SHAPE).bfloat16()


@pytest.fixture(scope="module")
def published(model: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the tokenizer of the model in the package beside it."""
    directory = tmp_path_factory.mktemp("gguf") / "published"
    save_model(model, directory)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        shutil.copy(BUNDLED / file, directory)
    return directory


@pytest.fixture(scope="module")
def written(published: Path, tmp_path_factory: pytest.TempPathFactory) -> gguf.GGUFReader:
    target = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    to_gguf(open_pieces(published), target, "bfloat16")
    return open_gguf(target)


def values_of(reader: gguf.GGUFReader) -> dict[str, Tensor]:
    """Return what the package's own dequantisers make of every tensor, in the order of our dimensions."""
    return {
        t.name: torch.tensor(gguf.quants.dequantize(t.data, t.tensor_type)).reshape(*reversed(t.shape.tolist()))
        for t in reader.tensors
    }


def said(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


# ---- tensors ----


def llama_cpp_name(piece: Piece, model: ModelConfig) -> str:
    """Translate a key as the converter of llama.cpp does: experts joined, biases spelt as such, then its map."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BAILINGMOE2, model.num_stored_layers)
    key = piece.key.replace("gate.expert_bias", "gate.expert_bias.bias")
    if piece.expert is not None:
        key = key.replace(f"experts.{piece.expert}.", "experts.")
    name = names.get_name(key, try_suffixes=(".weight", ".bias"))
    assert name is not None, key
    return name


def test_every_tensor_has_the_name_that_llama_cpp_s_own_map_gives_it() -> None:
    config = tiny_config(**SHAPE)
    expected = {llama_cpp_name(piece, config) for piece in published_pieces(config)}
    assert {tensor.name for tensor in plan_gguf(config, "bfloat16")} == expected


def test_tensors_hold_the_published_values_experts_stacked(published: Path, written: gguf.GGUFReader) -> None:
    found, source = values_of(written), open_pieces(published)
    for piece in published_pieces(source.config):
        whole = found[llama_cpp_name(piece, source.config)]
        part = whole if piece.expert is None else whole[piece.expert]
        assert torch.equal(part, source.read(piece).float()), piece.key
    assert found["blk.1.ffn_down_exps.weight"].shape == (16, 64, 32)


def test_norms_routers_and_biases_are_float32_whatever_is_asked_for(published: Path, tmp_path: Path) -> None:
    to_gguf(open_pieces(published), tmp_path / "q.gguf", "q4_0")
    kinds = {t.name: t.tensor_type.name for t in open_gguf(tmp_path / "q.gguf").tensors}
    for name, kind in kinds.items():
        single = "norm" in name or name.endswith(("ffn_gate_inp.weight", ".bias"))
        assert kind == ("F32" if single else "Q8_0" if name == "output.weight" else "Q4_0"), name
    assert kinds["blk.1.exp_probs_b.bias"] == "F32"


@pytest.mark.parametrize("dtype", ling_gguf.GGUF_TYPES)
def test_verifying_reads_every_type_back(dtype: ling_gguf.GgufType, published: Path, tmp_path: Path) -> None:
    source, counted = open_pieces(published), []
    to_gguf(source, tmp_path / "a.gguf", dtype, progress=lambda done, total: counted.append((done, total)))
    pieces = len(published_pieces(source.config))
    assert counted == [(n, pieces) for n in range(1, pieces + 1)]
    assert verify_gguf(source, tmp_path / "a.gguf", dtype) == pieces
    content = bytearray((tmp_path / "a.gguf").read_bytes())
    content[-33] ^= 1  # the last tensor may be padded
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"in .*a\.gguf is not what .*published holds"):
        verify_gguf(source, tmp_path / "a.gguf", dtype)


def test_every_source_gives_the_same_file(published: Path, tmp_path: Path) -> None:
    source = open_pieces(published)
    to_training(source, tmp_path / "training")
    to_megatron(source, tmp_path / "megatron")
    files = {}
    for directory in (published, tmp_path / "training", tmp_path / "megatron"):
        target = tmp_path / directory.name / "same.gguf"
        to_gguf(open_pieces(directory), target, "q8_0", tokenizer=published)
        files[directory.name] = {t.name: bytes(t.data) for t in open_gguf(target).tensors}
        target.unlink()
    assert files["published"] == files["training"] == files["megatron"]


def test_fp8_blocks_are_read_as_values(model: CausalLM, published: Path, tmp_path: Path) -> None:
    save_model(model, tmp_path / "fp8", export=ExportFormat(precision="float8"))
    source = open_pieces(tmp_path / "fp8")
    to_gguf(source, tmp_path / "fp8.gguf", "float32", tokenizer=published)
    found = values_of(open_gguf(tmp_path / "fp8.gguf"))["blk.0.attn_qkv.weight"]
    (piece,) = (
        p for p in published_pieces(source.config) if p.key.endswith("layers.0.attention.query_key_value.weight")
    )
    assert torch.equal(found, source.read(piece))
    assert not torch.equal(found, model.state_dict()[piece.parameter].float())


def test_mtp_layers_are_blocks_behind_the_others_or_left_out(published: Path, tmp_path: Path) -> None:
    to_gguf(open_pieces(published), tmp_path / "keep.gguf")
    to_gguf(without_mtp(open_pieces(published)), tmp_path / "drop.gguf")
    keep, drop = open_gguf(tmp_path / "keep.gguf"), open_gguf(tmp_path / "drop.gguf")
    facts = ("bailingmoe2.block_count", "bailingmoe2.nextn_predict_layers")
    assert [said(keep, key) for key in facts] == [4, 1]
    assert [said(drop, key) for key in facts] == [3, 0]
    more = {t.name for t in keep.tensors} - {t.name for t in drop.tensors}
    assert all(name.startswith("blk.3.") for name in more)
    assert {f"blk.3.nextn.{name}.weight" for name in ("enorm", "hnorm", "eh_proj")} <= more
    assert "blk.3.layer_output_norm.weight" in more


def test_a_tied_head_is_written_out(tmp_path: Path) -> None:
    tied = tiny_model(**SHAPE, tie_word_embeddings=True)
    save_model(tied, tmp_path / "tied", export=ExportFormat(precision="float32"))
    to_gguf(open_pieces(tmp_path / "tied"), tmp_path / "tied.gguf", "float32", tokenizer=BUNDLED)
    found = values_of(open_gguf(tmp_path / "tied.gguf"))
    assert torch.equal(found["output.weight"], found["token_embd.weight"])


# ---- blocks ----


def test_q8_0_is_a_float16_scale_and_32_signed_bytes() -> None:
    values = torch.zeros(1, 32)
    values[0, :4] = torch.tensor([127.0, -127.0, 1.0, -2.6])
    expected = np.float16(1).tobytes() + np.array([127, -127, 1, -3, *[0] * 28], dtype=np.int8).tobytes()
    assert encode_gguf(values, "Q8_0").tobytes() == expected


def test_q4_0_is_a_float16_scale_and_halves_of_16_bytes() -> None:
    values = torch.zeros(1, 32)
    values[0, 0], values[0, 1], values[0, 16], values[0, 31] = -8.0, 7.0, 3.0, -1.0
    codes = [8] * 32
    codes[0], codes[1], codes[16], codes[31] = 0, 15, 11, 7
    packed = bytes(low | high << 4 for low, high in zip(codes[:16], codes[16:]))
    assert encode_gguf(values, "Q4_0").tobytes() == np.float16(1).tobytes() + packed


@given(seed=st.integers(0, 2**32), exponent=st.integers(-12, 12), stored=st.sampled_from(["Q8_0", "Q4_0"]))
@example(seed=3628799, exponent=0, stored="Q4_0")
def test_a_packed_value_is_within_half_a_step(seed: int, exponent: int, stored: str) -> None:
    values = torch.randn(4, 96, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    packed = encode_gguf(values, stored)
    again = torch.tensor(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[stored]))
    blocks, error = values.view(-1, 32), (again - values).abs().view(-1, 32)
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    step = largest.abs() / (127 if stored == "Q8_0" else 8)
    allowed = step / 2 + 2.0**-11 * (blocks.abs() + step / 2) + 2.0**-25 * 127  # the code times a float16 scale
    if stored == "Q4_0":  # codes reach from -8 to 7: nothing is above 7 steps on the other side of the largest value
        beyond = -blocks * largest.sign() - 7 * step
        allowed = torch.maximum(allowed, beyond + 2.0**-11 * 8 * step + 2.0**-25 * 8)
    assert bool((error <= allowed).all()), float((error - allowed).max())


@pytest.mark.parametrize("stored", ["Q8_0", "Q4_0"])
def test_blocks_of_next_to_nothing_are_zero(stored: str) -> None:
    values = torch.full((1, 32), 1e-40)
    values[0, 3] = 0.0
    with np.errstate(all="raise", under="ignore"):
        packed = encode_gguf(values, stored)
    assert not gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[stored]).any()


@pytest.mark.parametrize(("stored", "value"), [("F16", 7e4), ("Q8_0", 9e6), ("Q4_0", -6e5)])
def test_values_beyond_a_type_are_named(stored: str, value: float) -> None:
    with pytest.raises(CheckpointError, match=f"tensor here has values above .*, which {stored} cannot hold"):
        encode_gguf(torch.full((1, 32), value), stored, "here")


# ---- metadata ----


def test_the_network_is_told_under_llama_cpp_s_keys(written: gguf.GGUFReader) -> None:
    expected = {
        "block_count": 4, "nextn_predict_layers": 1, "vocab_size": 2080, "context_length": 256, "embedding_length": 64,
        "feed_forward_length": 96, "leading_dense_block_count": 1, "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16,
        "attention.value_length": 16, "expert_count": 16, "expert_used_count": 4, "expert_feed_forward_length": 32,
        "expert_shared_count": 2, "expert_shared_feed_forward_length": 32, "expert_gating_func": 2,
        "expert_weights_norm": True, "expert_weights_scale": 2.5, "expert_group_count": 4, "expert_group_used_count": 2,
        "rope.dimension_count": 8, "rope.freq_base": 10000.0, "rope.scaling.type": "none",
    }  # fmt: skip
    found = {key: said(written, f"bailingmoe2.{key}") for key in expected}
    assert found == {key: pytest.approx(value) for key, value in expected.items()}
    assert {key for key in written.fields if key.startswith("bailingmoe2.")} == {
        f"bailingmoe2.{key}" for key in expected
    }
    general = {
        "architecture": "bailingmoe2",
        "name": "tiny",
        "type": "model",
        "file_type": gguf.LlamaFileType.MOSTLY_BF16,
    }
    assert {key: said(written, f"general.{key}") for key in general} == general


def metadata(tmp_path: Path, published: Path, **changes: Any) -> gguf.GGUFReader:
    """Write `published` as if its configuration were another one that changes no tensor."""
    source = open_pieces(published)
    source.config = dataclasses.replace(source.config, **changes)
    to_gguf(source, tmp_path / "changed.gguf")
    return open_gguf(tmp_path / "changed.gguf")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"n_group": 0, "topk_group": 0}, {"expert_group_count": 0, "expert_group_used_count": 0}),
        ({"n_group": 4, "topk_group": 4}, {"expert_group_count": 0, "expert_group_used_count": 0}),
        ({"num_experts_per_tok": 1}, {"expert_weights_norm": False}),
        (
            {"rope_scaling": RopeScaling(type="linear", factor=4.0)},
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        ),
        (
            {"rope_scaling": RopeScaling(type="yarn", factor=4.0, original_max_position_embeddings=64)},
            {
                "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64,
                "rope.scaling.attn_factor": 1.0,
            },
        ),
        (
            {"rope_scaling": RopeScaling(
                type="yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=1.5
            )},
            {"rope.scaling.attn_factor": 1.5 / 1.13862943611},
        ),
    ],
)  # fmt: skip
def test_rules_that_llama_cpp_spells_otherwise(changes: dict, expected: dict, published: Path, tmp_path: Path) -> None:
    reader = metadata(tmp_path, published, **changes)
    assert {key: said(reader, f"bailingmoe2.{key}") for key in expected} == {
        key: pytest.approx(value) for key, value in expected.items()
    }


def test_the_tokenizer_is_within(written: gguf.GGUFReader) -> None:
    content = json.loads((BUNDLED / "tokenizer.json").read_text(encoding="utf-8"))
    tokens, types = said(written, "tokenizer.ggml.tokens"), said(written, "tokenizer.ggml.token_type")
    assert len(tokens) == len(types) == 2080
    assert all(tokens[id] == token for token, id in content["model"]["vocab"].items())
    assert tokens[2041:2050] == [
        "<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]", "<|role_end|>", "<role>", "</role>", "[PAD2048]",
        "[PAD2049]",
    ]  # fmt: skip
    kinds = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED
    assert types == [kinds[0]] * 2041 + [kinds[1]] * 7 + [kinds[2]] * 32
    merges = said(written, "tokenizer.ggml.merges")
    assert merges == [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    expected = {
        "model": "gpt2", "pre": "bailingmoe2", "bos_token_id": 2041, "eos_token_id": 2045, "eot_token_id": 2045,
        "padding_token_id": 2042, "add_bos_token": False, "add_eos_token": False,
    }  # fmt: skip
    assert {key: said(written, f"tokenizer.ggml.{key}") for key in expected} == expected
    template = json.loads((BUNDLED / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    assert said(written, "tokenizer.chat_template") == template


def test_a_template_in_a_file_of_its_own_is_taken(published: Path, tmp_path: Path) -> None:
    own = shutil.copytree(published, tmp_path / "own")
    (own / "chat_template.jinja").write_text("{{ messages }}")
    to_gguf(open_pieces(own), tmp_path / "own.gguf")
    assert said(open_gguf(tmp_path / "own.gguf"), "tokenizer.chat_template") == "{{ messages }}"


# ---- streaming and atomicity ----


class Watched(SafetensorsPieces):
    """A source that counts how many of the tensors it gave are still held."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.given: list[weakref.ref[Tensor]] = []
        self.most = 0

    def read(self, piece: Piece) -> Tensor:
        values = super().read(piece)
        self.given = [ref for ref in self.given if ref() is not None] + [weakref.ref(values)]
        self.most = max(self.most, len(self.given))
        return values


def test_two_published_tensors_are_held_at_most(published: Path, tmp_path: Path) -> None:
    source = Watched(published)
    to_gguf(source, tmp_path / "a.gguf", "q8_0")
    assert source.most <= 2


def test_the_size_of_chunks_is_not_in_the_file(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for chunk in (2**20, 1000):
        monkeypatch.setattr(ling_gguf, "_CHUNK", chunk)
        to_gguf(open_pieces(published), tmp_path / "a.gguf", "q4_0", overwrite=True)
        files.append((tmp_path / "a.gguf").read_bytes())
    assert files[0] == files[1]


def test_an_interrupted_conversion_leaves_what_was_there(published: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    target = tmp_path / "new/a.gguf"
    with pytest.raises(KeyboardInterrupt):
        to_gguf(open_pieces(published), target, progress=interrupt)
    assert list(target.parent.iterdir()) == []
    to_gguf(open_pieces(published), target)
    before = target.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        to_gguf(open_pieces(published), target, "q8_0", overwrite=True, progress=interrupt)
    assert [f.name for f in target.parent.iterdir()] == ["a.gguf"]
    assert target.read_bytes() == before


# ---- what is refused ----


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"head_dim": 32}, "heads of 128 channels together where hidden_size is 64"),
        ({"use_qk_norm": False}, "no QK norm"),
        ({"use_qkv_bias": True}, "biases on linear layers"),
        ({"num_shared_experts": 0}, "no shared expert"),
        ({"num_experts": 2048}, "2048 experts, more than 1024"),
        (
            {
                "first_k_dense_replace": 3,
                "num_nextn_predict_layers": 0,
                "num_experts": 0,
                "n_group": 0,
                "topk_group": 0,
            },
            "no experts",
        ),
        (
            {"rope_scaling": RopeScaling(type="yarn", factor=2, original_max_position_embeddings=9, beta_fast=16)},
            "YaRN with beta_fast 16 and beta_slow 1 in place of 32 and 1",
        ),
        (
            {"rope_scaling": RopeScaling(type="yarn", factor=2, original_max_position_embeddings=9, truncate=False)},
            "YaRN without truncate",
        ),
    ],
)
def test_networks_that_llama_cpp_does_not_have_are_refused(changes: dict, reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"the model has {reason}, which llama.cpp's"):
        plan_gguf(tiny_config(**{**SHAPE, **changes}), "bfloat16")


def test_rows_that_are_no_whole_blocks_are_named(tmp_path: Path) -> None:
    save_model(tiny_model(**{**SHAPE, "moe_intermediate_size": 12}), tmp_path / "odd")
    line = "blk.1.ffn_down_exps.weight has rows of 12 values, and q8_0 packs 32 of a row"
    with pytest.raises(CheckpointError, match=line):
        to_gguf(open_pieces(tmp_path / "odd"), tmp_path / "a.gguf", "q8_0", tokenizer=BUNDLED)
    to_gguf(open_pieces(tmp_path / "odd"), tmp_path / "a.gguf", "bfloat16", tokenizer=BUNDLED)


def edited(tmp_path: Path, **changes: Any) -> Path:
    """Return the package's tokenizer with parts of its tokenizer.json replaced."""
    directory = shutil.copytree(BUNDLED, tmp_path / "edited", ignore=shutil.ignore_patterns("*.safetensors", "*.py*"))
    content = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"] |= changes.pop("model", {})
    (directory / "tokenizer.json").write_text(json.dumps(content | changes), encoding="utf-8")
    return directory


GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    "changes", [{"pre_tokenizer": GPT2}, {"pre_tokenizer": None}, {"model": {"ignore_merges": True}}]
)
def test_a_tokenizer_of_another_family_is_refused(changes: dict, published: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not cut text as Ling"):
        to_gguf(open_pieces(published), tmp_path / "a.gguf", tokenizer=edited(tmp_path, **changes))
    assert not (tmp_path / "a.gguf").exists()


def test_more_tokens_than_rows_are_refused(tmp_path: Path) -> None:
    save_model(tiny_model(**{**SHAPE, "vocab_size": 2047}), tmp_path / "small")
    with pytest.raises(CheckpointError, match="has 2048 tokens, the model 2047 rows"):
        to_gguf(open_pieces(tmp_path / "small"), tmp_path / "a.gguf", tokenizer=BUNDLED)


def test_a_source_without_a_tokenizer_asks_for_one(model: CausalLM, tmp_path: Path) -> None:
    save_model(model, tmp_path / "bare")
    with pytest.raises(CheckpointError, match=r"comes without a tokenizer.*give one with --tokenizer"):
        to_gguf(open_pieces(tmp_path / "bare"), tmp_path / "a.gguf")


def test_only_gguf_files_are_replaced(published: Path, tmp_path: Path) -> None:
    source, target = open_pieces(published), tmp_path / "thesis.gguf"
    target.write_text("years of work")
    with pytest.raises(CheckpointError, match="exists and is not a GGUF file"):
        to_gguf(source, target, overwrite=True)
    assert target.read_text() == "years of work"
    target.unlink()
    to_gguf(source, target)
    with pytest.raises(CheckpointError, match="exists already"):
        to_gguf(source, target)
    (tmp_path / "directory.gguf").mkdir()
    with pytest.raises(CheckpointError, match="is a directory"):
        to_gguf(source, tmp_path / "directory.gguf", overwrite=True)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 64])
def test_a_damaged_file_is_named(content: bytes, published: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.gguf is not a whole GGUF file"):
        verify_gguf(open_pieces(published), tmp_path / "a.gguf", "bfloat16")


def test_a_missing_package_is_one_line(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"install it with: pip install 'ling\[gguf\]'"):
        to_gguf(open_pieces(published), tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []
