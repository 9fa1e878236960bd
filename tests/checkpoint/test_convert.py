"""From any checkpoint to any other: the reference's converter cases, round trips, and what is refused."""

import argparse
import hashlib
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.golden_cases import GOLDEN
from torch import Tensor

from ling.checkpoint import load_model, save_model
from ling.checkpoint.convert import mtp_to_safetensors, to_megatron, to_safetensors, to_training, verify, without_mtp
from ling.checkpoint.layout import megatron_layout
from ling.checkpoint.megatron import COMMON_NAME, args_from_config, config_from_args, find_iteration, read_args
from ling.checkpoint.names import published_pieces
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.save import ExportFormat, ScaleMode
from ling.config import ModelConfig, write_published
from ling.config.model import RopeScaling
from ling.engine.bundled import bundled_directory
from ling.errors import CheckpointError
from ling.model import CausalLM
from ling.model.batch import pack
from ling.testing.models import tiny_config, tiny_model
from ling.testing.tolerances import GOLDEN as GOLDEN_TOLERANCE
from ling.testing.tolerances import assert_close

ROOT = Path(__file__).parents[2]
CASES = ("plain", "two_ranks")


def tensors(directory: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    return found


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def assert_reference(directory: Path, case: str, tag: str) -> None:
    """Compare every tensor's name, dtype, shape and bytes with what the published converter wrote."""
    recorded = json.loads((GOLDEN / f"convert/{case}/expected_{tag}.json").read_text(encoding="utf-8"))
    expected = {key: told for file in recorded["tensors"].values() for key, told in file.items()}
    found = tensors(directory)
    assert found.keys() == expected.keys()
    for key, told in expected.items():
        assert str(found[key].dtype) == f"torch.{told['dtype']}", key
        assert list(found[key].shape) == told["shape"], key
        assert digest(found[key]) == told["sha256"], key


# ---- Megatron to safetensors, as the published converter ----


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("workers", [1, 3])
def test_bfloat16_with_mtp(case: str, workers: int, tmp_path: Path) -> None:
    source = open_pieces(GOLDEN / f"convert/{case}/input")
    to_safetensors(source, tmp_path / "out", ExportFormat(), max_shard_bytes=20_000, workers=workers)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    assert_reference(tmp_path / "out", case, "bf16_mtp")


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_without_mtp(case: str, tmp_path: Path) -> None:
    source = without_mtp(open_pieces(GOLDEN / f"convert/{case}/input"))
    to_safetensors(source, tmp_path / "out", ExportFormat())
    assert_reference(tmp_path / "out", case, "bf16")


@pytest.mark.parametrize("case", CASES)
def test_float8_with_mtp(case: str, tmp_path: Path) -> None:
    source = open_pieces(GOLDEN / f"convert/{case}/input")
    to_safetensors(source, tmp_path / "out", ExportFormat(precision="float8"))
    assert_reference(tmp_path / "out", case, "fp8_mtp")


@pytest.mark.parametrize("case", CASES)
def test_mtp_on_its_own(case: str, tmp_path: Path) -> None:
    with mtp_to_safetensors(open_pieces(GOLDEN / f"convert/{case}/input"), tmp_path / "out", ExportFormat()):
        pass
    assert_reference(tmp_path / "out", case, "mtp_separate")
    assert [f.name for f in (tmp_path / "out").glob("*.safetensors")] == ["mtp_layers_parameters.safetensors"]
    config = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
    assert [config[k] for k in ("num_hidden_layers", "first_k_dense_replace", "num_nextn_predict_layers")] == [1, 0, 1]


@pytest.mark.parametrize("case", CASES)
def test_the_configuration_says_what_the_reference_says(case: str, tmp_path: Path) -> None:
    tokenizer = GOLDEN / "convert/two_ranks/tokenizer" if case == "two_ranks" else None
    to_safetensors(open_pieces(GOLDEN / f"convert/{case}/input", tokenizer), tmp_path / "out", ExportFormat())
    ours = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
    theirs = json.loads((GOLDEN / f"convert/{case}/expected_bf16_mtp/config.json").read_text(encoding="utf-8"))
    absent = {"auto_map", "transformers_version"}  # no code goes along, no transformers was used
    special = {"eos_token_id", "pad_token_id"} if case == "plain" else set()  # theirs lie outside the vocabulary
    factor, width = "partial_rotary_factor", ours["head_dim"]
    assert int(width * ours[factor]) == int(width * theirs[factor]) == ours["rotary_dim"]
    for key in theirs.keys() - absent - special - {factor}:
        assert ours[key] == theirs[key], key


@pytest.mark.parametrize("case", CASES)
def test_the_converted_model_computes_what_the_reference_computes(case: str, tmp_path: Path) -> None:
    to_safetensors(open_pieces(GOLDEN / f"convert/{case}/input"), tmp_path / "out", ExportFormat())
    model = load_model(tmp_path / "out", dtype=torch.float32)
    run = load_file(GOLDEN / f"convert/{case}/run_e2e.safetensors")
    assert not run.keys() & {"in.attention_mask", "in.position_ids"}
    ids = run["in.input_ids"]
    tokens, positions, batch = pack(ids.tolist())
    with torch.no_grad():
        found = model.logits(model(tokens, positions, batch).hidden)
    assert_close(found, run["out.logits"].flatten(0, 1), GOLDEN_TOLERANCE, "logits")


# ---- round trips ----


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return tiny_model(seed=4, num_attention_heads=6, num_key_value_heads=2, use_qkv_bias=True).bfloat16()


@pytest.fixture
def published(model: CausalLM, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "published")
    return tmp_path / "published"


@pytest.mark.parametrize("write", [to_megatron, to_training])
@pytest.mark.parametrize("workers", [1, 3])
def test_there_and_back_is_the_same_to_the_bit(write, workers: int, published: Path, tmp_path: Path) -> None:
    write(open_pieces(published), tmp_path / "dcp", workers=workers)
    assert verify(open_pieces(published), tmp_path / "dcp", None, workers=workers) == len(
        published_pieces(tiny_config_of(published))
    )
    to_safetensors(open_pieces(tmp_path / "dcp"), tmp_path / "back", ExportFormat())
    before, after = tensors(published), tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype, key
        assert digest(value) == digest(after[key]), key
    assert any(key.endswith("expert_bias") and value.dtype == torch.float32 for key, value in after.items())


def tiny_config_of(directory: Path) -> ModelConfig:
    return open_pieces(directory).config


def test_experts_of_several_precisions_lose_nothing_in_one_stack(published: Path, tmp_path: Path) -> None:
    (file,) = published.glob("*.safetensors")
    content = load_file(file)
    for key in ("model.layers.1.mlp.experts.3.up_proj.weight", "model.layers.1.attention.dense.weight"):
        content[key] = content[key].float() + 2**-20
    save_file(content, file, {"format": "pt"})
    to_training(open_pieces(published), tmp_path / "dcp")
    float32 = ExportFormat(precision="float32")
    for name in ("published", "dcp"):
        to_safetensors(open_pieces(tmp_path / name), tmp_path / f"{name}32", float32)
    before, after = tensors(tmp_path / "published32"), tensors(tmp_path / "dcp32")
    assert [key for key in before if digest(before[key]) != digest(after[key])] == []


def test_megatron_keeps_each_group_s_heads_together(published: Path, tmp_path: Path) -> None:
    """Against the rule of the specification, written out by hand: per group its Q heads, then K, then V."""
    to_megatron(open_pieces(published), tmp_path / "megatron")
    config = tiny_config_of(published)
    A, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    fused = tensors(published)["model.layers.0.attention.query_key_value.weight"]
    q, k, v = fused.split([A * D, K * D, K * D])
    per = A // K
    rows = [
        part
        for g in range(K)
        for part in (q[g * per * D : (g + 1) * per * D], k[g * D : (g + 1) * D], v[g * D : (g + 1) * D])
    ]
    from ling.checkpoint.dcp import DcpSource

    stored = DcpSource(tmp_path / "megatron/iter_0000001").read("decoder.layers.0.self_attention.linear_qkv.weight")
    assert torch.equal(stored, torch.cat(rows))


def test_megatron_s_directory_is_complete(published: Path, tmp_path: Path) -> None:
    to_megatron(open_pieces(published), tmp_path / "megatron")
    assert (tmp_path / "megatron/latest_checkpointed_iteration.txt").read_text() == "1"
    iteration = find_iteration(tmp_path / "megatron")
    assert iteration == tmp_path / "megatron/iter_0000001"
    assert json.loads((iteration / "metadata.json").read_text())["sharded_backend"] == "torch_dist"
    common = torch.load(iteration / COMMON_NAME, weights_only=False)
    assert common["args"].moe_layer_freq == [0, *[1] * (tiny_config_of(published).num_hidden_layers - 1)]


FAMILY: dict[str, dict] = {
    "as it is": {},
    "no groups": {"n_group": 0, "topk_group": 0},
    "one group": {"n_group": 1, "topk_group": 1},
    "no MTP": {"num_nextn_predict_layers": 0},
    "two MTP layers": {"num_nextn_predict_layers": 2},
    "no shared expert": {"num_shared_experts": 0},
    "tied head": {"tie_word_embeddings": True},
    "biases": {"use_bias": True, "use_qkv_bias": True},
    "no QK norm": {"use_qk_norm": False},
    "no expert bias": {"moe_router_enable_expert_bias": False},
    "YaRN": {
        "rope_scaling": RopeScaling(type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=16.0),
        "max_position_embeddings": 256,
    },
    "linear scaling": {"rope_scaling": RopeScaling(type="linear", factor=2.0)},
    "dense": {
        "first_k_dense_replace": 3, "num_experts": 0, "num_experts_per_tok": 0, "moe_intermediate_size": 0,
        "num_shared_experts": 0, "n_group": 0, "topk_group": 0, "num_nextn_predict_layers": 0,
    },
    "ends of two kinds": {"eos_token_id": (3, 4), "pad_token_id": 7},
    "no ends": {"eos_token_id": None, "pad_token_id": None},
}  # fmt: skip
"""Networks of the family, as changes to the tiny one."""


@pytest.mark.parametrize("kind", FAMILY)
def test_every_network_of_the_family_goes_there_and_back(kind: str, tmp_path: Path) -> None:
    save_model(tiny_model(**FAMILY[kind]).bfloat16(), tmp_path / "published")
    source = open_pieces(tmp_path / "published")
    for write in (to_megatron, to_training):
        write(source, tmp_path / write.__name__)
        back = tmp_path / f"{write.__name__} back"
        to_safetensors(open_pieces(tmp_path / write.__name__), back, ExportFormat())
        before, after = tensors(tmp_path / "published"), tensors(back)
        assert before.keys() == after.keys()
        assert [key for key in before if digest(before[key]) != digest(after[key])] == []
        assert write_published(open_pieces(back).config) == write_published(source.config)


@pytest.mark.parametrize("kind", FAMILY)
def test_arguments_give_the_configuration_back(kind: str) -> None:
    config = tiny_config(torch_dtype="bfloat16", **FAMILY[kind])
    again = config_from_args(vars(args_from_config(config)), config.num_nextn_predict_layers, "args")
    assert again == config_like(config, again)


def config_like(config: ModelConfig, other: ModelConfig) -> ModelConfig:
    """Return `config` with what Megatron's arguments write otherwise taken from `other`."""
    import dataclasses

    names = ("rotary_dim", "moe_shared_expert_intermediate_size")
    assert config.rotated_dim == other.rotated_dim
    assert config.shared_expert_dim == other.shared_expert_dim
    return dataclasses.replace(config, **{name: getattr(other, name) for name in names})


def test_a_training_checkpoint_made_from_a_model_starts_a_run(published: Path, tmp_path: Path) -> None:
    from ling.checkpoint.dcp import DcpSource
    from ling.config.training import OptimConfig
    from ling.train.state import TrainState

    to_training(open_pieces(published), tmp_path / "start")
    fresh = CausalLM(tiny_config_of(published))
    state = TrainState(fresh, OptimConfig())
    state.restore(DcpSource(tmp_path / "start"))
    assert state.step == 0
    expected = load_model(published, dtype=torch.float32).state_dict()
    assert all(torch.equal(fresh.state_dict()[name], value) for name, value in expected.items())


def test_every_place_of_a_tensor_is_filled_once() -> None:
    config = tiny_config()
    layout = megatron_layout(config)
    filled: dict[str, Tensor] = {}
    for piece in published_pieces(config):
        place = layout(piece)
        whole = filled.setdefault(place.key, torch.zeros(place.shape))
        place.put(whole, place.get(whole) + 1)
    assert all(bool((whole == 1).all()) for whole in filled.values())


def test_verifying_finds_one_changed_byte(published: Path, tmp_path: Path) -> None:
    for precision in ("bfloat16", "float8"):
        export = ExportFormat(precision=precision)
        target = tmp_path / precision
        to_safetensors(open_pieces(published), target, export)
        assert verify(open_pieces(published), target, export) > 100
        (file,) = target.glob("*.safetensors")
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"is not what .*published holds"):
            verify(open_pieces(published), target, export)


def test_an_interrupted_conversion_goes_on(published: Path, tmp_path: Path) -> None:
    source, target, done = open_pieces(published), tmp_path / "out", 0

    def interrupt(now: int, total: int) -> None:
        nonlocal done
        done = now
        if now == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_safetensors(source, target, ExportFormat(), max_shard_bytes=50_000, progress=interrupt)
    assert not target.exists()
    (partial,) = tmp_path.glob(".out.partial-*")
    kept = {f.name: f.stat().st_mtime_ns for f in partial.glob("model-*")}
    assert len(kept) > 2
    told: list[tuple[int, int]] = []
    to_safetensors(source, target, ExportFormat(), max_shard_bytes=50_000, progress=lambda *now: told.append(now))
    assert told[0][0] > 10, "what was there already counts at once"
    assert told[-1] == (told[0][1], told[0][1])
    assert {name: (target / name).stat().st_mtime_ns for name in kept} == kept
    assert verify(source, target, ExportFormat())
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("write", [to_megatron, to_training])
@pytest.mark.parametrize("workers", [1, 3])
def test_an_interrupted_distributed_checkpoint_leaves_nothing(
    write, workers: int, published: Path, tmp_path: Path
) -> None:
    def interrupt(now: int, total: int) -> None:
        if now == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(open_pieces(published), tmp_path / "out", workers=workers, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_damaged_source_is_named_by_every_writer(workers: int, published: Path, tmp_path: Path) -> None:
    (file,) = published.glob("*.safetensors")
    content = load_file(file)
    content["lm_head.weight"][3, 3] = float("inf")
    save_file(content, file, {"format": "pt"})
    for write in (to_megatron, to_training):
        with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
            write(open_pieces(published), tmp_path / "out", workers=workers)
        assert [path.name for path in tmp_path.iterdir()] == ["published"]


# ---- FP8 to FP8 ----


@pytest.mark.parametrize("scales", ["published", "pow2", "fp32"])
def test_codes_and_scales_pass_through_unchanged(scales, published: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    to_safetensors(open_pieces(published), first, ExportFormat(precision="float8", fp8_scales=scales))
    with torch.no_grad():  # scales that no quantiser of ours would choose
        held = {f: load_file(f) for f in first.glob("*.safetensors")}
    for file, content in held.items():
        save_file({k: v * 1.37 if k.endswith("_scale_inv") else v for k, v in content.items()}, file, {"format": "pt"})
    to_safetensors(open_pieces(first), again, ExportFormat(precision="float8"))
    before, after = tensors(first), tensors(again)
    assert before.keys() == after.keys()
    assert [k for k in before if digest(before[k]) != digest(after[k])] == []
    assert verify(open_pieces(first), again, ExportFormat(precision="float8")) > 100


def test_scales_asked_for_by_name_are_made_anew(published: Path, tmp_path: Path) -> None:
    to_safetensors(open_pieces(published), tmp_path / "fp32", ExportFormat(precision="float8", fp8_scales="fp32"))
    export = ExportFormat(precision="float8", fp8_scales="pow2")
    to_safetensors(open_pieces(tmp_path / "fp32"), tmp_path / "pow2", export)
    scales = [v for k, v in tensors(tmp_path / "pow2").items() if k.endswith("_scale_inv")]
    assert scales
    assert all(bool((torch.frexp(s)[0] == 0.5).all()) for s in scales)


@pytest.mark.parametrize(("key", "value"), [("weight", float("nan")), ("weight_scale_inv", 0.0)])
def test_damaged_codes_do_not_pass_through(key: str, value: float, published: Path, tmp_path: Path) -> None:
    to_safetensors(open_pieces(published), tmp_path / "first", ExportFormat(precision="float8"))
    (file,) = (tmp_path / "first").glob("*.safetensors")
    content = load_file(file)
    name = f"model.layers.0.attention.dense.{key}"
    content[name] = torch.full_like(content[name].float(), value).to(content[name].dtype)
    save_file(content, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"attention\.dense\.weight"):
        to_safetensors(open_pieces(tmp_path / "first"), tmp_path / "again", ExportFormat(precision="float8"))
    assert not list(tmp_path.glob("*again*"))


# ---- what lies beside the weights ----


def test_a_card_says_what_the_model_is_and_how_its_files_were_made(published: Path, tmp_path: Path) -> None:
    to_safetensors(open_pieces(published), tmp_path / "my-model", ExportFormat(precision="float8"))
    card = (tmp_path / "my-model/README.md").read_text()
    assert "# my-model" in card
    assert f"| experts | {open_pieces(published).config.num_experts} per layer" in card
    assert "from published (safetensors)" in card
    assert "E4M3 codes" in card


def test_a_card_that_is_there_is_kept_and_its_section_renewed(published: Path, tmp_path: Path) -> None:
    (published / "README.md").write_text("# Mine\n\nTrained with care.\n")
    to_safetensors(open_pieces(published), tmp_path / "fp8", ExportFormat(precision="float8"))
    to_safetensors(open_pieces(tmp_path / "fp8"), tmp_path / "bf16", ExportFormat())
    card = (tmp_path / "bf16/README.md").read_text()
    assert card.startswith("# Mine\n\nTrained with care.\n")
    assert card.count("How these files were made") == 1
    assert "from fp8 (safetensors)" in card
    assert "E4M3" not in card


@pytest.mark.parametrize("write", [to_megatron, to_training])
def test_a_card_goes_through_distributed_checkpoints(write, published: Path, tmp_path: Path) -> None:
    (published / "README.md").write_text("# Mine\n\nTrained with care.\n")
    write(open_pieces(published), tmp_path / "dcp")
    (card,) = (tmp_path / "dcp").rglob("README.md")
    assert "from published (safetensors)" in card.read_text()
    to_safetensors(open_pieces(tmp_path / "dcp"), tmp_path / "back", ExportFormat())
    text = (tmp_path / "back/README.md").read_text()
    assert text.startswith("# Mine\n\nTrained with care.\n")
    assert text.count("How these files were made") == 1
    assert "Stored as bfloat16;" in text


def test_generation_settings_are_written_where_there_are_none(published: Path, tmp_path: Path) -> None:
    bundled = bundled_directory()
    to_safetensors(open_pieces(published), tmp_path / "plain", ExportFormat())
    config = open_pieces(published).config
    settings = json.loads((tmp_path / "plain/generation_config.json").read_text())
    assert settings["eos_token_id"] == sorted(config.eos_token_ids)
    shutil.copytree(bundled, tmp_path / "bare", ignore=shutil.ignore_patterns("generation_config.json", "*.py"))
    to_safetensors(open_pieces(tmp_path / "bare"), tmp_path / "full", ExportFormat())
    settings = json.loads((tmp_path / "full/generation_config.json").read_text())
    assert settings == {"eos_token_id": [2042, 2045], "pad_token_id": 2042, "do_sample": False}


# ---- every combination ----


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_combination_of_options_verifies_or_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from ling.cli.app import main

    small = {
        "vocab_size": 2048, "head_dim": 16, "num_experts": 8, "moe_intermediate_size": 32, "num_hidden_layers": 2,
        "pad_token_id": 2042, "eos_token_id": (2042, 2045),
    }  # fmt: skip
    model, sources = tiny_model(seed=1, **small), []
    for precision, scales in (("float32", None), ("bfloat16", None), *(("float8", s) for s in get_args(ScaleMode))):
        sources.append(tmp_path / f"{precision}{scales or ''}")
        save_model(model, sources[-1], export=ExportFormat(precision=precision, fp8_scales=scales))  # type: ignore[arg-type]
    for write, name in ((to_training, "training"), (to_megatron, "megatron")):
        write(open_pieces(tmp_path / "bfloat16"), tmp_path / name)
        sources.append(tmp_path / name)
    dtypes = (None, "float32", "bfloat16", "float8", "float16", "q8_0", "q4_0")
    kinds = ("safetensors", "training", "megatron", "gguf")
    done = 0
    for source, to, dtype, scales, mtp in itertools.product(
        sources, kinds, dtypes, (None, *get_args(ScaleMode)), ("keep", "drop", "separate")
    ):
        target = tmp_path / "out" / ("x.gguf" if to == "gguf" else "x")
        command = ["convert", source, target, "--to", to, "--mtp", mtp, "--tokenizer", bundled_directory(), "--verify"]
        command += ["--dtype", dtype] if dtype else []
        command += ["--fp8-scales", scales] if scales else []
        codes = []
        for more in (["--dry-run"], []):
            monkeypatch.setattr(sys, "argv", ["ling", *map(str, command + more)])
            try:
                main()
                codes.append(0)
            except SystemExit as exit:
                codes.append(exit.code)
        said = capfd.readouterr().err
        assert codes in ([0, 0], [2, 2]), (command, said)
        assert ("tensors compared" in said) == (codes[0] == 0), (command, said)
        expected = {target.name, *(["x-mtp"] if mtp == "separate" else [])} if codes[0] == 0 else set()
        assert {path.name for path in (tmp_path / "out").glob("*")} == expected, (command, said)
        assert codes[0] == 0 or len(said.splitlines()) == 2, said
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        done += codes[0] == 0
    assert done == 7 * (3 * (2 + 1 + 4) + 3 * 3 + 3 * 3 + 2 * 6)


# ---- what is refused ----


class Hostile:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


def write_common(directory: Path, common: object) -> None:
    with zipfile.ZipFile(directory / COMMON_NAME, "w") as archive:
        archive.writestr("common/data.pkl", pickle.dumps(common))


@pytest.fixture
def megatron(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "convert/two_ranks/input", tmp_path / "megatron")
    return tmp_path / "megatron"


def test_a_hostile_common_file_runs_nothing(megatron: Path, tmp_path: Path) -> None:
    args = argparse.Namespace(**read_args(megatron))
    args.run_me = Hostile(tmp_path / "it-ran")
    write_common(megatron, {"args": args, "more": [Hostile(tmp_path / "it-ran")]})
    assert open_pieces(megatron).config.hidden_size == 72
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("common", [{}, [], {"args": {"num_layers": 2}}, {"args": Hostile(Path("it-ran"))}])
def test_a_common_file_without_arguments_is_named(megatron: Path, common: object) -> None:
    write_common(megatron, common)
    with pytest.raises(CheckpointError, match=r"common\.pt has no args"):
        open_pieces(megatron)


def test_a_damaged_common_file_is_named(megatron: Path) -> None:
    (megatron / COMMON_NAME).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(CheckpointError, match=r"common\.pt cannot be read"):
        open_pieces(megatron)


def test_missing_arguments_are_named(megatron: Path) -> None:
    args = argparse.Namespace(**{k: v for k, v in read_args(megatron).items() if k != "seq_length"})
    write_common(megatron, {"args": args})
    with pytest.raises(CheckpointError, match=r"lacks args\.seq_length"):
        open_pieces(megatron)


def test_what_the_model_has_no_place_for_is_not_dropped(megatron: Path, published: Path, tmp_path: Path) -> None:
    args = argparse.Namespace(**{**read_args(megatron), "num_layers": 2, "moe_layer_freq": [0, 1]})
    write_common(megatron, {"args": args})
    with pytest.raises(CheckpointError, match=r"holds decoder\.layers\.2\.\S+ and \d+ more tensors, which this model"):
        open_pieces(megatron)
    to_training(open_pieces(published), tmp_path / "dcp")
    facts = json.loads((tmp_path / "dcp/training.json").read_text())
    facts["model"]["use_qk_norm"] = False
    (tmp_path / "dcp/training.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"holds model/\S+key_layernorm\.weight and \d+ more"):
        open_pieces(tmp_path / "dcp")


@pytest.mark.parametrize(
    ("name", "value"), [("apply_layernorm_1p", True), ("normalization", "LayerNorm"), ("use_rope_scaling", True)]
)
def test_arguments_of_another_network_are_refused(megatron: Path, name: str, value: object) -> None:
    write_common(megatron, {"args": argparse.Namespace(**{**read_args(megatron), name: value})})
    with pytest.raises(CheckpointError, match=rf"args\.{name} .* is another network"):
        open_pieces(megatron)


@pytest.mark.parametrize("told", [{"vocab_size": 50}, {"vocab_size": None}, {"make_vocab_size_divisible_by": 1}])
def test_a_padded_vocabulary_is_as_large_as_its_embedding(megatron: Path, told: dict, tmp_path: Path) -> None:
    """Megatron pads for its tensor parallelism; the published converter would write 60 rows into config.json."""
    write_common(megatron, {"args": argparse.Namespace(**{**read_args(megatron), **told})})
    to_safetensors(open_pieces(megatron), tmp_path / "out", ExportFormat())
    assert open_pieces(tmp_path / "out").config.vocab_size == 64
    assert_reference(tmp_path / "out", "two_ranks", "bf16_mtp")


def test_a_tokenizer_comes_back_from_megatron(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to_megatron(open_pieces(bundled_directory()), tmp_path / "megatron")
    monkeypatch.chdir(tmp_path)
    to_safetensors(open_pieces(tmp_path / "megatron"), tmp_path / "back", ExportFormat())
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (bundled_directory() / name).read_bytes()


def test_tensors_of_another_shape_are_named(megatron: Path, tmp_path: Path) -> None:
    args = argparse.Namespace(**{**read_args(megatron), "ffn_hidden_size": 128})
    write_common(megatron, {"args": args})
    with pytest.raises(CheckpointError, match=r"linear_fc1\.weight is \(320, 72\)"):
        to_safetensors(open_pieces(megatron), tmp_path / "out", ExportFormat())
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("where", ["published", ".", "published/inside"])
def test_a_target_that_would_swallow_the_source_is_refused(published: Path, where: str) -> None:
    before = digest(torch.frombuffer(bytearray(next(published.glob("*.safetensors")).read_bytes()), dtype=torch.uint8))
    with pytest.raises(CheckpointError, match="must lie apart"):
        to_safetensors(open_pieces(published), published.parent / where, ExportFormat(), overwrite=True)
    after = digest(torch.frombuffer(bytearray(next(published.glob("*.safetensors")).read_bytes()), dtype=torch.uint8))
    assert before == after


def test_only_checkpoints_are_overwritten(published: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="exists and is not a checkpoint"):
        to_safetensors(open_pieces(published), tmp_path / "thesis", ExportFormat(), overwrite=True)
    assert (tmp_path / "thesis/chapter.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("words")
    with pytest.raises(CheckpointError, match="is a file"):
        to_safetensors(open_pieces(published), tmp_path / "file", ExportFormat(), overwrite=True)


def test_only_the_tokenizer_s_files_come_from_its_directory(published: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    save_model(tiny_model(seed=9), other)
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        to_safetensors(open_pieces(published), tmp_path / "out", ExportFormat(), tokenizer=other)
    (other / "tokenizer.json").write_text("{}")
    to_safetensors(open_pieces(published), tmp_path / "out", ExportFormat(), tokenizer=other)
    assert (tmp_path / "out/tokenizer.json").exists()
    assert verify(open_pieces(published), tmp_path / "out", ExportFormat())


def test_weights_that_diverged_are_not_exported(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has values that are NaN"):
        save_model(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ---- the command lines ----


def test_the_published_script_takes_every_published_flag(tmp_path: Path) -> None:
    script = ROOT / "tools/convert_dcp_to_safetensors.py"
    case = GOLDEN / "convert/two_ranks"
    command = [
        sys.executable, str(script), "--checkpoint-path", str(case / "input"), "--target-path", str(tmp_path / "out"),
        "--megatron-path", "/nowhere", "--force-bf16", "--force-fp8", "--mtp-path", str(tmp_path / "mtp"),
        "--override-tokenizer-path", str(case / "tokenizer"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = tensors(tmp_path / "out")
    assert found["model.layers.0.attention.dense.weight"].dtype == torch.float8_e4m3fn
    assert not any(key.startswith("model.layers.3.") for key in found)
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (case / "tokenizer/tokenizer.json").read_bytes()
    assert (tmp_path / "mtp/mtp_layers_parameters.safetensors").exists()
