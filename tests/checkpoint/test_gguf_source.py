"""GGUF files as sources: what went in comes out, packed types as the package unpacks them, damage in one line."""

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file

from ling.checkpoint import save_model
from ling.checkpoint.convert import to_safetensors, to_training
from ling.checkpoint.gguf import GgufType, to_gguf
from ling.checkpoint.load import load_model
from ling.checkpoint.names import published_pieces
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.save import ExportFormat
from ling.config import RopeScaling
from ling.engine.bundled import bundled_directory
from ling.errors import CheckpointError
from ling.testing.models import tiny_model
from ling.tokenizer import Tokenizer

BUNDLED = bundled_directory()
SHAPE: dict[str, Any] = {
    "vocab_size": 2080, "head_dim": 16, "rotary_dim": 8, "moe_intermediate_size": 32, "num_shared_experts": 2,
    "moe_shared_expert_intermediate_size": 32, "eos_token_id": (2042, 2045), "pad_token_id": 2042,
    "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6,
}  # fmt: skip
YARN = RopeScaling(type="yarn", factor=4.0, original_max_position_embeddings=64)


def written(directory: Path, dtype: GgufType = "bfloat16", **changes: Any) -> Path:
    """Write a model and its GGUF file; return the latter."""
    save_model(tiny_model(seed=5, **{**SHAPE, **changes}).bfloat16(), directory / "published")
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        shutil.copy(BUNDLED / file, directory / "published")
    to_gguf(open_pieces(directory / "published"), directory / "tiny.gguf", dtype)
    return directory / "tiny.gguf"


@pytest.mark.parametrize(
    "changes",
    [
        {"num_nextn_predict_layers": 1},
        {"num_nextn_predict_layers": 0, "n_group": 1, "topk_group": 1},
        {"rope_scaling": YARN, "max_position_embeddings": 256},
        {"rope_scaling": dataclasses.replace(YARN, attention_factor=1.25), "max_position_embeddings": 256},
        {"rope_scaling": RopeScaling(type="linear", factor=2.0)},
        {"moe_router_enable_expert_bias": False},
    ],
    ids=["mtp", "no groups", "yarn", "yarn with a factor", "linear", "no expert bias"],
)
def test_there_and_back_is_bit_identical(tmp_path: Path, changes: dict[str, Any]) -> None:
    source = open_pieces(written(tmp_path, **changes))
    was = open_pieces(tmp_path / "published").config
    unsaid = {"mtp_loss_scaling_factor": 0.0, "initializer_range": 0.02}
    assert source.config == dataclasses.replace(was, **unsaid)
    to_safetensors(source, tmp_path / "back", ExportFormat())
    before = load_file(tmp_path / "published/model-00001-of-00001.safetensors")
    after = load_file(tmp_path / "back/model-00001-of-00001.safetensors")
    assert before.keys() == after.keys()
    for key, expected in before.items():
        assert after[key].dtype == expected.dtype
        assert torch.equal(after[key], expected), key


@pytest.mark.parametrize("dtype", ["float32", "float16", "q8_0", "q4_0"])
def test_packed_values_are_those_that_the_package_unpacks(tmp_path: Path, dtype: GgufType) -> None:
    path = written(tmp_path, dtype)
    source, reader = open_pieces(path), {t.name: t for t in gguf.GGUFReader(path).tensors}
    stacked = reader["blk.1.ffn_up_exps.weight"]
    expected = torch.from_numpy(gguf.quants.dequantize(stacked.data, stacked.tensor_type).copy())
    for piece in published_pieces(source.config):
        values = source.read(piece)
        assert values.dtype == source.dtype(piece)
        assert values.shape == piece.shape
        if piece.layer == 1 and piece.expert is not None and "up_proj" in piece.key:
            assert torch.equal(values.float(), expected[piece.expert]), piece.key


def test_a_file_becomes_a_training_checkpoint_and_a_model(tmp_path: Path) -> None:
    path = written(tmp_path)
    to_training(open_pieces(path), tmp_path / "training")
    to_safetensors(open_pieces(tmp_path / "training"), tmp_path / "again", ExportFormat())
    model, was = load_model(tmp_path / "again"), load_model(tmp_path / "published")
    assert all(torch.equal(tensor, was.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_the_tokenizer_and_the_stop_ids_come_back(tmp_path: Path) -> None:
    to_safetensors(open_pieces(written(tmp_path)), tmp_path / "back", ExportFormat())
    ours, theirs = (Tokenizer.from_directory(tmp_path / name) for name in ("published", "back"))
    for text in ("It's  1234 things,\n\n und 百灵大模型\U0001f680", "<role>HUMAN</role>hi<|role_end|>"):
        assert theirs.encode(text) == ours.encode(text)
        assert theirs.encode(text, special=False) == ours.encode(text, special=False)
    assert theirs.stop_ids == ours.stop_ids
    assert theirs.is_chat
    configs = [json.loads((tmp_path / name / "tokenizer_config.json").read_text()) for name in ("published", "back")]
    assert configs[0] == configs[1]
    generation = json.loads((tmp_path / "back/generation_config.json").read_text())
    assert generation["eos_token_id"] == [2042, 2045]


def test_other_files_and_other_networks_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("nothing")
    with pytest.raises(CheckpointError, match="only GGUF files are checkpoints by themselves"):
        open_pieces(tmp_path / "a.txt")
    writer = gguf.GGUFWriter(tmp_path / "llama.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="architecture 'llama', not bailingmoe2"):
        open_pieces(tmp_path / "llama.gguf")


def test_damage_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, vocab_size=2080)
    whole = path.read_bytes()
    header = whole.index(b"tokenizer.ggml.tokens")
    chance, said = random.Random(7), []
    damaged = tmp_path / "damaged.gguf"
    for round_ in range(60):
        data = bytearray(whole)
        if round_ % 5 == 0:
            data = data[: chance.randrange(len(data))]
        else:
            at = chance.randrange(4, header)
            data[at : at + 8] = chance.choice(
                [b"\xff" * 8, bytes(8), chance.randbytes(8), (2**40).to_bytes(8, "little")]
            )
        damaged.write_bytes(data)
        try:
            source = open_pieces(damaged)
            for piece in published_pieces(source.config)[::40]:
                source.read(piece)
            source.tokenizer_files()
        except CheckpointError as error:
            said.append(str(error))
    assert len(said) > 25
    assert all(str(damaged) in line and "\n" not in line for line in said)
