"""llama.cpp itself reads our GGUF files: its logits, its tokens, its quantisers, beside ours.

The proof has two halves. In float32 llama.cpp computes what we compute, for every spelling of the network. And what it
unpacks from our packed blocks is what we say they hold, to the bit. Files of other types are run as well, but there
llama.cpp rounds activations on the way into each product (to bfloat16, float16, or eight bits per block of 32), which
our network does not. So what the same rounding does to our own logits is the measure of how far apart they may be.
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from benchmarks.peers import run_in_peer
from torch import Tensor

from ling.checkpoint import load_model, save_model
from ling.checkpoint.gguf import GgufType, open_gguf, to_gguf
from ling.checkpoint.gguf_blocks import encode_gguf
from ling.checkpoint.gguf_layout import gguf_layout
from ling.checkpoint.names import published_pieces
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.save import ExportFormat
from ling.config import RopeScaling
from ling.engine.bundled import bundled_directory
from ling.model import CausalLM
from ling.model.batch import pack
from ling.ops import linear as ops
from ling.ops.backend import use_backend
from ling.testing.models import tiny_model
from ling.testing.tolerances import Tolerance, assert_close
from ling.tokenizer import Tokenizer, render

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # building llama.cpp takes minutes, once

BUNDLED = bundled_directory()
TOKENIZER = Tokenizer.from_directory(BUNDLED)
PROMPT = (
    render([{"role": "user", "content": "Who are you, and what is 12 plus 30?"}], add_generation_prompt=True)
    + "I am Ling, a small language model. It is a truth universally acknowledged, that a single man in possession of a "
    "good fortune, must be in want of a wife."
)
TEXTS = [
    "Hello, world! It's 2024, and I'll say we DON'T mind.",
    "\u767e\u7075\u5927\u6a21\u578b\uff0c\u4f60\u597d\uff01\u4eca\u5929\u662f2024\u5e7412\u670831\u65e5\u3002",
    "3.14159 265-35 0x1F 1,000,000",
    "  two  spaces\n\n\tand a tab\r\n\r\n   end  ",
    "\u00e9t\u00e9 \u041c\u043e\u0441\u043a\u0432\u0430 \u0661\u0662 \U0001f600\U0001f468\u200d\U0001f469 e\u0301",
    "<|endoftext|><role>HUMAN</role>hi<|role_end|> <role > |role_end|> [gMASK]",
    PROMPT,
]

FLOAT32 = Tolerance(5e-5, 1e-5, "float32 sums in another order, four layers deep; measured 1.6e-5 at 24.6")
ROUNDING_FACTOR = 2.0
"""Times what rounding does to our own logits, at the worst position and at the middle one; measured 1.04 at most."""
PACKED_MEDIAN = 0.01
"""Of the largest logit: the middle position's difference when activations are packed; measured 0.004."""


def rounded_to_blocks(x: Tensor) -> Tensor:
    """Round as Q8_0 does, 32 values of a row by one float16 scale."""
    blocks = x.reshape(-1, 32)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    codes = torch.where(scale == 0, 0.0, blocks / scale).round()
    return (codes * scale.half().float()).reshape(x.shape)


HEAD_PRODUCT = "ling.model.transformer.linear"
ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "bfloat16": lambda x: x.bfloat16().float(),
    "float16": lambda x: x.half().float(),
    "q8_0": rounded_to_blocks,
    "q4_0": rounded_to_blocks,
}


def ask(tmp_path: Path, **request: Any) -> dict[str, Any]:
    file = tmp_path / "request.json"
    asked = {"out": str(tmp_path), "texts": [], "keys": [], **request}
    file.write_text(json.dumps(asked), encoding="utf-8")
    assert run_in_peer("llama_cpp", "benchmarks.llama_cpp_probe", str(file)) == 0
    answers: dict[str, Any] = json.loads((tmp_path / "answers.json").read_text(encoding="utf-8"))
    return answers


def floats(path: Path) -> Tensor:
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.float32)


def their_logits(file: Path, ids: list[int]) -> Tensor:
    ask(file.parent, model=str(file), ids=ids)
    return floats(file.parent / "logits.f32").view(len(ids), -1)


@torch.no_grad()
def our_logits(model: CausalLM, ids: list[int]) -> Tensor:
    tokens, positions, batch = pack([ids])
    return model.logits(model(tokens, positions, batch).hidden)


@torch.no_grad()
def fill_from(model: CausalLM, file: Path) -> None:
    """Give `model` the values that a GGUF file holds, unpacked by the gguf package."""
    stored = {tensor.name: tensor for tensor in open_gguf(file).tensors}
    layout, state = gguf_layout(model.config), model.state_dict()
    for piece in published_pieces(model.config):
        place = layout(piece)
        tensor = stored[place.key]
        values = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).view(place.shape)
        piece.part_of(state[piece.parameter]).copy_(place.get(values))


# ---- the model in the package ----


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "q8_0", "q4_0"])
def test_logits_at_every_position(dtype: GgufType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to_gguf(open_pieces(BUNDLED), tmp_path / "ling.gguf", dtype)
    model, ids = load_model(BUNDLED, dtype=torch.float32), TOKENIZER.encode(PROMPT)
    fill_from(model, tmp_path / "ling.gguf")
    ours, theirs = our_logits(model, ids), their_logits(tmp_path / "ling.gguf", ids)
    error = (ours - theirs).abs().amax(1)
    agreed = int((ours.argmax(1) == theirs.argmax(1)).sum())
    print(
        f"\n{dtype}: largest logit {ours.abs().max():.1f}; differences of at most {error.max():.2g}, at the middle "
        f"position {error.median():.2g}; same best token at {agreed} of {len(ids)} positions"
    )
    if dtype == "float32":
        assert_close(theirs, ours, FLOAT32, "logits of llama.cpp")
        assert agreed == len(ids)
        return
    for where in ("ling.ops.attention.linear", "ling.ops.mlp.linear", "ling.ops.moe.grouped_linear", HEAD_PRODUCT):
        product = getattr(ops, where.rpartition(".")[2])
        monkeypatch.setattr(where, rounding(product, ROUNDINGS[dtype]))
    with use_backend("reference"):
        effect = (our_logits(model, ids) - ours).abs().amax(1)
    print(f"rounding our activations alike: at most {effect.max():.2g}, at the middle position {effect.median():.2g}")
    assert error.max() <= ROUNDING_FACTOR * effect.max(), (error.max(), effect.max())
    assert error.median() <= ROUNDING_FACTOR * effect.median(), (error.median(), effect.median())


def rounding(product: Callable[..., Tensor], rounded: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x, *rest: product(rounded(x), *rest)


def test_tokens_special_or_spelt_out(tmp_path: Path) -> None:
    to_gguf(open_pieces(BUNDLED), tmp_path / "ling.gguf", "q8_0")
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
    ]
    keys = ["general.architecture", "tokenizer.ggml.pre"]
    answers = ask(tmp_path, model=str(tmp_path / "ling.gguf"), texts=TEXTS, messages=messages, keys=keys)
    for text, (special, plain) in zip(TEXTS, answers["tokens"], strict=True):
        assert special == TOKENIZER.encode(text), text
        assert plain == TOKENIZER.encode(text, special=False), text
    assert answers["ends"] == sorted(TOKENIZER.stop_ids)
    assert answers["roles"] == {
        "bos": TOKENIZER.bos_id, "eos": TOKENIZER.eos_id, "eot": TOKENIZER.eos_id, "pad": TOKENIZER.pad_id,
    }  # fmt: skip
    assert answers["chat"] == render(messages, add_generation_prompt=True)
    assert answers["keys"] == {"general.architecture": "bailingmoe2", "tokenizer.ggml.pre": "bailingmoe2"}


# ---- other networks ----

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
NETWORKS: dict[str, dict[str, Any]] = {
    "groups and wide shared experts": {"num_shared_experts": 2, "moe_shared_expert_intermediate_size": 20},
    "no groups, no bias": {"n_group": 0, "topk_group": 0, "moe_router_enable_expert_bias": False},
    "groups that exclude nothing": {"n_group": 2, "topk_group": 2},
    "one expert per token": {"num_experts_per_tok": 1},
    "all layers sparse": {"first_k_dense_replace": 0},
    "a tied head": {"tie_word_embeddings": True},
    "the whole head rotated": {"rotary_dim": None, "rope_theta": 600000.0},
    "linear scaling": {"rope_scaling": RopeScaling(type="linear", factor=4.0)},
    "YaRN": {"rope_scaling": RopeScaling(**YARN), "rope_theta": 100.0},
    "YaRN with a factor of its own": {"rope_scaling": RopeScaling(**YARN, attention_factor=1.5)},
    "YaRN with mscales": {"rope_scaling": RopeScaling(**YARN, mscale=0.7, mscale_all_dim=0.4)},
    "two MTP layers": {"num_nextn_predict_layers": 2},
    "no MTP layer, other eps": {"num_nextn_predict_layers": 0, "rms_norm_eps": 1e-2},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_every_kind_in_float32(name: str, tmp_path: Path) -> None:
    """Random weights, widths that are no whole blocks, more rows than tokens."""
    shape = {"vocab_size": 2080, "head_dim": 16, "rotary_dim": 8, "torch_dtype": "float32", "pad_token_id": None}
    model = tiny_model(seed=11, **{**shape, **NETWORKS[name]})
    save_model(model, tmp_path / "model", export=ExportFormat(precision="float32"))
    to_gguf(open_pieces(tmp_path / "model"), tmp_path / "tiny.gguf", "float32", tokenizer=BUNDLED)
    ids = torch.randint(0, 2080, (120,), generator=torch.Generator().manual_seed(3)).tolist()
    theirs = their_logits(tmp_path / "tiny.gguf", ids)
    assert_close(theirs, our_logits(model, ids), FLOAT32, name)


@pytest.mark.parametrize("dtype", ["bfloat16", "q8_0", "q4_0"])
def test_an_fp8_checkpoint_arrives(dtype: GgufType, tmp_path: Path) -> None:
    """From the codes of an FP8 checkpoint; the tokenizer lies beside it."""
    model = load_model(BUNDLED, dtype=torch.float32)
    save_model(model, tmp_path / "fp8", export=ExportFormat(precision="float8"))
    shutil.copy(BUNDLED / "tokenizer.json", tmp_path / "fp8")
    to_gguf(open_pieces(tmp_path / "fp8"), tmp_path / "fp8.gguf", dtype)
    fill_from(model, tmp_path / "fp8.gguf")
    ids = TOKENIZER.encode(PROMPT)
    error = (our_logits(model, ids) - their_logits(tmp_path / "fp8.gguf", ids)).abs().amax(1)
    assert error.median() <= PACKED_MEDIAN * our_logits(model, ids).abs().max()


# ---- blocks ----


@pytest.mark.parametrize("stored", ["BF16", "F16", "Q8_0", "Q4_0"])
def test_blocks_are_packed_and_unpacked_as_ggml_does(stored: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(8)
    values = torch.randn(256, 128, generator=generator) * 10 ** torch.randint(-5, 3, (256, 1), generator=generator)
    values[3, :32] = 0.0
    values[5] = values[5].round()  # halves and ties
    (tmp_path / "values.f32").write_bytes(values.numpy().tobytes())
    asked = {"type": stored, "columns": values.shape[1], "values": str(tmp_path / "values.f32")}
    ask(tmp_path, quantize=asked)
    ours = encode_gguf(values, stored)
    assert ours.tobytes() == (tmp_path / "packed").read_bytes()
    unpacked = gguf.quants.dequantize(ours.view("uint8"), gguf.GGMLQuantizationType[stored])
    assert torch.equal(torch.tensor(unpacked).flatten(), floats(tmp_path / "unpacked.f32"))
    assert math.isfinite(float(unpacked.max()))
