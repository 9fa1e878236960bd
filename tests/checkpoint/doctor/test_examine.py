"""Every trap is seen, under its own name, and nothing else is; what needs no guess is mended and stays mended."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.random_checkpoint import write_random
from safetensors.torch import load_file, save_file
from tests.checkpoint.doctor.conftest import edit, rewrite, serious

from ling.checkpoint import load_model
from ling.checkpoint.convert import mtp_to_safetensors, to_megatron, to_training
from ling.checkpoint.doctor import examine, examine_weights, mend
from ling.checkpoint.doctor.examine import OF_FILES, OF_THE_MODEL
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.save import ExportFormat
from ling.checkpoint.source import INDEX_NAME
from ling.config.presets import PRESETS
from ling.config.recipe import load_recipe
from ling.errors import CheckpointError

YARN = {"type": "yarn", "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
NEWER = {"rope_theta": 600000.0, "partial_rotary_factor": 0.5}
BIAS = "model.layers.2.mlp.gate.expert_bias"
MATRIX = "model.layers.1.attention.dense.weight"


def stretch(directory: Path, drop: str = "", context: int = 2048, **changes: object) -> None:
    scaling = {key: value for key, value in {**YARN, **changes}.items() if key not in drop.split()}
    edit(
        directory,
        {"rope_scaling": scaling, "max_position_embeddings": context, "rope_parameters": {**scaling, **NEWER}},
    )


def cut(directory: Path) -> None:
    file = max(directory.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])


def reindex(directory: Path, change: Callable[[dict[str, str]], object]) -> None:
    path = directory / INDEX_NAME
    index = json.loads(path.read_text(encoding="utf-8"))
    change(index["weight_map"])
    path.write_text(json.dumps(index), encoding="utf-8")


def without_mtp(tensors: dict[str, torch.Tensor]) -> None:
    for key in [key for key in tensors if key.startswith("model.layers.4.")]:
        del tensors[key]


def clone_first_file(directory: Path) -> None:
    shutil.copy(min(directory.glob("*.safetensors")), directory / "copy.safetensors")


# (what is broken, the check that sees it, its severity, part of what it says, whether --fix mends it)
TRAPS: dict[str, tuple[Callable[[Path], object], str, str, str, bool]] = {
    "rotary_dim absent": (
        lambda d: edit(d, drop="rotary_dim"),
        "rotary-width",
        "warning",
        "transformers 5.20 rotate all 32",
        True,
    ),
    "factor absent": (
        lambda d: edit(d, drop="partial_rotary_factor rope_parameters", changes={"rope_theta": 10000.0}),
        "rotary-width",
        "warning",
        "transformers rotates all 32",
        True,
    ),
    "no rotary width": (
        lambda d: edit(d, {"rope_theta": 10000.0}, drop="partial_rotary_factor rotary_dim rope_parameters"),
        "rotary-width",
        "warning",
        "neither is there",
        False,
    ),
    "rotary contradiction": (
        lambda d: edit(d, {"rotary_dim": 8}),
        "unreadable",
        "error",
        "rotary_dim 8 contradicts",
        False,
    ),
    "base at the top only": (lambda d: edit(d, drop="rope_parameters"), "rope-base", "warning", "vllm#56066", True),
    "base below only": (lambda d: edit(d, drop="rope_theta"), "rope-base", "warning", "only in rope_parameters", True),
    "no base": (
        lambda d: edit(d, {"rope_parameters": {"partial_rotary_factor": 0.5}}, drop="rope_theta"),
        "rope-base",
        "warning",
        "readers fill in 600000 or 10000",
        False,
    ),
    "two bases": (lambda d: edit(d, {"rope_theta": 1e4}), "rope-base", "error", "contradicts 600000.0", False),
    "yarn by type only": (lambda d: stretch(d, "rope_type"), "stretching", "warning", "no rope_type", True),
    "yarn without trained context": (
        lambda d: stretch(d, "original_max_position_embeddings", context=512),
        "stretching",
        "warning",
        "original_max_position_embeddings is missing",
        False,
    ),
    "yarn by factor 1": (
        lambda d: stretch(d, factor=1.0, context=512),
        "stretching",
        "warning",
        "factor 1 stretches",
        False,
    ),
    "yarn in one spelling": (
        lambda d: edit(d, {"rope_scaling": YARN, "max_position_embeddings": 2048}),
        "stretching",
        "warning",
        "contradicts rope_scaling",
        True,
    ),
    "yarn without its context": (
        lambda d: stretch(d, context=512),
        "context",
        "warning",
        "takes their ratio 1 for the factor 4",
        True,
    ),
    "no context": (lambda d: edit(d, drop="max_position_embeddings"), "context", "warning", "missing", False),
    "no groups": (lambda d: edit(d, {"n_group": 0, "topk_group": 0}), "expert-groups", "warning", "readers fail", True),
    "one of the groups": (lambda d: edit(d, {"n_group": 0}), "unreadable", "error", "must both be 0", False),
    "no score function": (
        lambda d: edit(d, drop="score_function"),
        "said-in-full",
        "warning",
        "vLLM takes softmax",
        True,
    ),
    "no kind of norm": (lambda d: edit(d, {"use_rmsnorm": None}), "said-in-full", "warning", "LayerNorm", True),
    "router in words": (lambda d: edit(d, {"router_dtype": "None"}), "router-precision", "warning", "'None'", True),
    "rounded bias": (
        lambda d: rewrite(d, lambda t: t.update({BIAS: t[BIAS].bfloat16()})),
        "expert-bias-precision",
        "warning",
        "1 expert biases are BF16",
        True,
    ),
    "dtype": (lambda d: edit(d, {"torch_dtype": "float32"}), "dtype-of-weights", "warning", "tensors are BF16", True),
    "MTP unannounced": (
        lambda d: edit(d, drop="num_nextn_predict_layers"),
        "mtp",
        "warning",
        "absent, but there are tensors",
        True,
    ),
    "MTP promised": (lambda d: rewrite(d, without_mtp), "mtp", "error", "1, but no tensor of layer 4", True),
    "MTP in part": (
        lambda d: (
            rewrite(d, lambda t: t.pop("model.layers.4.eh_proj.weight")),
            edit(d, drop="num_nextn_predict_layers"),
        ),
        "mtp",
        "warning",
        "absent, but",
        False,
    ),
    "missing tensor": (lambda d: rewrite(d, lambda t: t.pop(MATRIX)), "all-there", "error", "1 tensors that", False),
    "strange tensor": (
        lambda d: rewrite(d, lambda t: t.update(extra=torch.zeros(2))),
        "all-there",
        "error",
        "no place",
        False,
    ),
    "misshapen tensor": (
        lambda d: rewrite(d, lambda t: t.update({MATRIX: t[MATRIX][:5].clone()})),
        "all-there",
        "error",
        "not (128, 128)",
        False,
    ),
    "vocabulary": (lambda d: edit(d, {"vocab_size": 4096}), "vocabulary", "error", "have 2048 rows", True),
    "embedding of another model": (
        lambda d: (
            rewrite(
                d,
                lambda t: [
                    t.update({k: t[k][:2046].clone()}) for k in ("model.word_embeddings.weight", "lm_head.weight")
                ],
            ),
            edit(d, {"vocab_size": 2046}),
        ),
        "vocabulary",
        "error",
        "2048 tokens, the embedding 2046",
        False,
    ),
    "head of another model": (
        lambda d: rewrite(d, lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:9].clone()})),
        "vocabulary",
        "error",
        "2048 rows and 9 rows",
        False,
    ),
    "truncated": (cut, "unreadable", "error", "is truncated", False),
    "total size": (
        lambda d: edit(d, {"metadata": {"total_size": 7}}, file=INDEX_NAME),
        "index",
        "warning",
        "it is 7; the tensors",
        True,
    ),
    "index lost": (lambda d: (d / INDEX_NAME).unlink(), "index", "error", "files but no index", True),
    "index forgets": (lambda d: reindex(d, lambda m: m.pop(MATRIX)), "index", "error", f"leaves out {MATRIX}", True),
    "index invents": (
        lambda d: reindex(d, lambda m: m.update(ghost=next(iter(m.values())))),
        "index",
        "error",
        "places ghost",
        True,
    ),
    "index misplaces": (
        lambda d: reindex(d, lambda m: m.update({MATRIX: max(m.values())})),
        "index",
        "error",
        f"places {MATRIX}",
        True,
    ),
    "index of nothing": (
        lambda d: edit(d, {"weight_map": 3}, file=INDEX_NAME),
        "index",
        "error",
        "no weight_map",
        True,
    ),
    "copies": (clone_first_file, "index", "error", "lie in two files", False),
    "pickle": (lambda d: (d / "pytorch_model.bin").touch(), "pickles", "warning", "runs what it likes", False),
    "auto_map": (
        lambda d: edit(d, {"auto_map": {"AutoConfig": "configuration_x.C"}}),
        "auto-map",
        "warning",
        "configuration_x.py",
        False,
    ),
    "no template": (
        lambda d: edit(d, drop="chat_template", file="tokenizer_config.json"),
        "chat-template",
        "warning",
        "absent",
        False,
    ),
    "two templates": (
        lambda d: (d / "chat_template.jinja").write_text("x"),
        "chat-template",
        "warning",
        "differs",
        False,
    ),
    "no tokenizer": (
        lambda d: (d / "tokenizer.json").unlink(),
        "tokenizer-there",
        "warning",
        "cannot be talked to",
        False,
    ),
    "BOS": (
        lambda d: edit(d, {"add_bos_token": True}, file="tokenizer_config.json"),
        "tokenizer-there",
        "warning",
        "BOS",
        True,
    ),
    "one stop id": (
        lambda d: edit(d, {"eos_token_id": 2042}, file="generation_config.json"),
        "stop-ids",
        "warning",
        "2045 (<|role_end|>)",
        True,
    ),
    "no generation config": (
        lambda d: (d / "generation_config.json").unlink(),
        "stop-ids",
        "warning",
        "absent: engines run on",
        True,
    ),
    "one stop id in config.json": (
        lambda d: edit(d, {"eos_token_id": 2042}),
        "stop-ids",
        "warning",
        "leaves out 2045",
        True,
    ),
    "FP8 promised": (
        lambda d: edit(d, {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}),
        "declared",
        "error",
        "it promises FP8",
        True,
    ),
    "not JSON": (lambda d: (d / "config.json").write_text("{"), "unreadable", "error", "not valid JSON", False),
    "nothing in it": (
        lambda d: (d / "config.json").write_text("{}"),
        "unreadable",
        "error",
        "neither architect",
        False,
    ),
    "index not JSON": (lambda d: (d / INDEX_NAME).write_text("{"), "unreadable", "error", "not valid JSON", True),
    "another width below": (
        lambda d: edit(d, {"rope_parameters": {**NEWER, "partial_rotary_factor": 1.0}}),
        "rotary-width",
        "error",
        "1.0 contradicts the width of 16",
        False,
    ),
    "yarn without a type": (
        lambda d: edit(d, {"rope_scaling": {k: v for k, v in YARN.items() if "type" not in k}}),
        "stretching",
        "warning",
        "factor 4 with no type",
        True,
    ),
    "yarn of type default": (
        lambda d: edit(d, {"rope_scaling": {"type": "default", "factor": 4}}),
        "stretching",
        "warning",
        "factor 4 with default",
        False,
    ),
    "a group's key absent": (
        lambda d: edit(d, drop="topk_group"),
        "expert-groups",
        "warning",
        "fill in their own",
        True,
    ),
    "shared experts null": (
        lambda d: edit(d, {"num_shared_experts": None}),
        "said-in-full",
        "warning",
        "null with 0",
        True,
    ),
    "MTP promised twice": (
        lambda d: edit(d, {"num_nextn_predict_layers": 2}),
        "mtp",
        "error",
        "2, but only MTP layer 4",
        True,
    ),
}

FP8_TRAPS: dict[str, tuple[Callable[[Path], object], str, str, str, bool]] = {
    "undeclared": (lambda d: edit(d, drop="quantization_config"), "declared", "error", "tensors are FP8", True),
    "eh_proj unnamed": (
        lambda d: edit(d, {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}),
        "kept-unquantized",
        "warning",
        "does not name eh_proj",
        True,
    ),
    "gate named": (
        lambda d: edit(
            d,
            {
                "quantization_config": {
                    "quant_method": "fp8",
                    "weight_block_size": [128, 128],
                    "modules_to_not_convert": ["eh_proj", "mlp.gate"],
                }
            },
        ),
        "kept-unquantized",
        "warning",
        "gate also matches",
        False,
    ),
    "other blocks": (
        lambda d: edit(
            d,
            {
                "quantization_config": {
                    "quant_method": "fp8",
                    "weight_block_size": [64, 64],
                    "modules_to_not_convert": ["eh_proj"],
                }
            },
        ),
        "declared",
        "error",
        "blocks [64, 64]",
        False,
    ),
    "no scales": (
        lambda d: rewrite(d, lambda t: t.pop(MATRIX + "_scale_inv")),
        "scales",
        "error",
        "have no scales",
        False,
    ),
    "no codes": (lambda d: rewrite(d, lambda t: t.pop(MATRIX)), "scales", "error", "have no codes", False),
    "wrong grid": (
        lambda d: rewrite(d, lambda t: t.update({MATRIX + "_scale_inv": torch.ones(2, 1)})),
        "scales",
        "error",
        "one number per 128x128 block",
        False,
    ),
    "scales in bf16": (
        lambda d: rewrite(d, lambda t: t.update({MATRIX + "_scale_inv": torch.ones(1, 1).bfloat16()})),
        "scales",
        "error",
        "not F32",
        False,
    ),
    "codes of the head": (
        lambda d: rewrite(d, lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.float8_e4m3fn)})),
        "scales",
        "error",
        "every reader takes as values",
        False,
    ),
    "partly quantised": (
        lambda d: rewrite(
            d, lambda t: (t.update({MATRIX: t[MATRIX].float().bfloat16()}), t.pop(MATRIX + "_scale_inv"))
        ),
        "kept-unquantized",
        "warning",
        "matrices are not FP8",
        False,
    ),
}


def test_what_we_write_is_sound(bf16: Path, fp8: Path) -> None:
    assert serious(bf16) == []
    assert serious(fp8) == []


@pytest.mark.parametrize("trap", TRAPS)
def test_each_trap_is_seen_and_mended_where_that_needs_no_guess(bf16: Path, trap: str) -> None:
    see_and_mend(bf16, *TRAPS[trap])


ONE_CAUSE: dict[str, tuple[Callable[[Path], object], str]] = {
    "FP8 layer of MTP unannounced": (lambda d: edit(d, drop="num_nextn_predict_layers"), "mtp"),
    "file lost": (lambda d: max(d.glob("*.safetensors")).unlink(), "index"),
    "generation config damaged": (lambda d: (d / "generation_config.json").write_text("{"), "unreadable"),
    "tokenizer damaged": (lambda d: (d / "tokenizer.json").write_text("{}"), "unreadable"),
}


@pytest.mark.parametrize("cause", ONE_CAUSE)
def test_one_cause_is_one_finding(fp8: Path, cause: str) -> None:
    breaks, check = ONE_CAUSE[cause]
    breaks(fp8)
    (seen,) = serious(fp8)
    assert seen.check == check
    assert str(fp8) not in seen.what


@pytest.mark.parametrize("trap", FP8_TRAPS)
def test_each_trap_of_fp8_is_seen(fp8: Path, trap: str) -> None:
    see_and_mend(fp8, *FP8_TRAPS[trap])


def see_and_mend(
    directory: Path, breaks: Callable[[Path], object], check: str, severity: str, says: str, mended: bool
) -> None:
    breaks(directory)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    found = serious(directory)
    (seen,) = [finding for finding in found if finding.check == check and says in finding.what]
    assert seen.severity == severity
    assert seen.fix
    assert (seen.repair is not None) == mended
    written = mend(directory, [seen])
    assert bool(written) == mended
    for name in written:
        if name in before:
            assert (directory / f"{name}.bak").read_bytes() == before[name]
    if mended:
        mend(directory, serious(directory))  # what one mended key brought to light
        assert serious(directory) == []
        load_model(directory)
    assert not [path for path in directory.iterdir() if "doctor-new" in path.name]


def test_every_check_has_a_trap() -> None:
    seen = {trap[1] for trap in (*TRAPS.values(), *FP8_TRAPS.values())} | {"format-mark", "mtp-in-engines"}
    assert {check.__name__.replace("_", "-") for check in (*OF_FILES, *OF_THE_MODEL)} == seen  # others: test_packed


def test_a_file_without_the_mark_of_its_writer_is_named(bf16: Path) -> None:
    file = min(bf16.glob("*.safetensors"))
    save_file(load_file(file), file)
    assert [finding.check for finding in serious(bf16)] == ["format-mark"]


def test_a_mended_bias_keeps_its_values_and_everything_else_its_bytes(bf16: Path) -> None:
    rewrite(bf16, lambda tensors: tensors.update({BIAS: tensors[BIAS].bfloat16()}))
    before = load_model(bf16).state_dict()
    mend(bf16, examine(bf16))
    after = load_model(bf16).state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())
    (told,) = examine_weights(bf16)
    assert (told.check, told.severity, told.where) == ("weights", "note", BIAS)


def test_a_mended_index_is_the_one_that_was_lost(bf16: Path) -> None:
    expected = json.loads((bf16 / INDEX_NAME).read_text(encoding="utf-8"))
    (bf16 / INDEX_NAME).unlink()
    mend(bf16, examine(bf16))
    assert json.loads((bf16 / INDEX_NAME).read_text(encoding="utf-8")) == expected


def test_the_first_original_survives_a_second_mending(bf16: Path) -> None:
    original = (bf16 / "config.json").read_bytes()
    for changes in ({"router_dtype": "None"}, {"n_group": 0, "topk_group": 0}):
        edit(bf16, changes)
        broken = (bf16 / "config.json").read_bytes()
        mend(bf16, examine(bf16))
    assert original not in (broken, (bf16 / "config.json.bak").read_bytes())
    assert (bf16 / "config.json.bak2").read_bytes() == broken


@pytest.mark.parametrize(
    ("change", "severity", "says"),
    [
        (lambda t: t[MATRIX][0, :1].fill_(float("nan")), "error", "NaN or infinite"),
        (lambda t: t[MATRIX].zero_(), "warning", "zero throughout"),
    ],
)
def test_values_are_looked_at_on_request(bf16: Path, change, severity: str, says: str) -> None:
    rewrite(bf16, change)
    assert serious(bf16) == [], "headers do not tell"
    (told,) = [finding for finding in examine_weights(bf16) if finding.severity != "note"]
    assert (told.severity, told.where) == (severity, MATRIX)
    assert says in told.what


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t[MATRIX].view(torch.uint8)[:1, :1].fill_(0xFF), "NaN or infinite"),
        (lambda t: t[MATRIX + "_scale_inv"].fill_(-1), "not positive"),
    ],
)
def test_codes_and_scales_are_looked_at_too(fp8: Path, change, says: str) -> None:
    rewrite(fp8, change)
    (told,) = [finding for finding in examine_weights(fp8) if finding.severity == "error"]
    assert says in told.what


def test_links_of_a_hub_cache_are_not_written_through(bf16: Path, tmp_path: Path) -> None:
    edit(bf16, {"router_dtype": "None"})
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in bf16.iterdir():
        (snapshot / path.name).symlink_to(path)
    before = (bf16 / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match="is a link, as in a hub's cache"):
        mend(snapshot, examine(snapshot))
    assert (bf16 / "config.json").read_bytes() == before
    assert not list(snapshot.glob("*doctor-new*"))


def test_a_missing_file_is_not_put_into_a_hub_cache(bf16: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in bf16.iterdir():
        if path.name != "generation_config.json":
            (snapshot / path.name).symlink_to(path)
    with pytest.raises(CheckpointError, match="is a link, as in a hub's cache"):
        mend(snapshot, examine(snapshot))
    assert not (snapshot / "generation_config.json").exists()


def several_faults(directory: Path) -> dict[str, bytes]:
    """Break a weight file, two JSON files and the index; return what the directory then holds."""
    file = next(f for f in directory.glob("*.safetensors") if BIAS in load_file(f))
    tensors = load_file(file)
    save_file({**tensors, BIAS: tensors[BIAS].bfloat16()}, file, metadata={"format": "pt"})
    edit(directory, {"router_dtype": "None"})
    edit(directory, {"eos_token_id": 2042}, file="generation_config.json")
    (directory / "tokenizer_config.json").chmod(0o640)
    edit(directory, {"add_bos_token": True}, file="tokenizer_config.json")
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("survives", range(5))
def test_a_fix_that_is_interrupted_leaves_what_was_there(
    bf16: Path, monkeypatch: pytest.MonkeyPatch, survives: int, error: BaseException
) -> None:
    before = several_faults(bf16)
    replace, done = Path.replace, []

    def failing(path: Path, target: Path) -> Path:
        if path.name.endswith("doctor-new"):
            if len(done) == survives:
                raise error
            done.append(path)
        return replace(path, target)

    found = examine(bf16)
    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises((CheckpointError, KeyboardInterrupt)):
        mend(bf16, found)
    assert {path.name: path.read_bytes() for path in bf16.iterdir()} == before
    monkeypatch.undo()
    assert len(mend(bf16, found)) == 5
    assert serious(bf16) == []


def test_a_mended_file_keeps_its_permissions(bf16: Path) -> None:
    several_faults(bf16)
    mend(bf16, examine(bf16))
    assert (bf16 / "tokenizer_config.json").stat().st_mode & 0o777 == 0o640


def test_file_systems_without_second_names_keep_the_original_too(bf16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    before = several_faults(bf16)
    monkeypatch.setattr(os, "link", refuse)
    for name in mend(bf16, examine(bf16)):
        assert (bf16 / f"{name}.bak").read_bytes() == before[name]


def test_everything_beside_a_mended_tensor_keeps_its_bytes(fp8: Path) -> None:
    several_faults(fp8)
    before = {file.name: load_file(file) for file in fp8.glob("*.safetensors")}
    mend(fp8, examine(fp8))
    for name, tensors in before.items():
        after = load_file(fp8 / name)
        assert list(after) == list(tensors)
        for key, value in tensors.items():
            expected = value.float() if key == BIAS else value
            assert torch.equal(after[key].view(torch.uint8), expected.view(torch.uint8)), key


def test_an_mtp_layer_alone_is_sound(bf16: Path, tmp_path: Path) -> None:
    with mtp_to_safetensors(open_pieces(bf16), tmp_path / "alone", ExportFormat(precision="bfloat16")):
        pass
    assert serious(tmp_path / "alone") == []


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("precision", ["bfloat16", "float8", "float32"])
def test_no_preset_raises_a_false_alarm(tmp_path: Path, name: str, precision: str) -> None:
    model = load_recipe(preset_name=name, file=None, overrides=[]).model
    changes: dict[str, Any] = {
        "vocab_size": 2048, "pad_token_id": 0, "eos_token_id": 1, "hidden_size": 64, "num_hidden_layers": 3,
        "first_k_dense_replace": 3, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 32, "rotary_dim": model.rotary_dim and 16,
    }  # fmt: skip
    if model.num_experts:
        changes |= {"num_experts": 16, "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32}
        changes |= {"first_k_dense_replace": 1, "num_nextn_predict_layers": 1}
    write_random(tmp_path / "toy", dataclasses.replace(model, **changes), ExportFormat(precision=precision))
    assert [finding.check for finding in serious(tmp_path / "toy")] == ["tokenizer-there"]


def test_a_directory_of_another_kind_says_what_to_do(bf16: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json: the doctor examines Hugging Face directories"):
        examine(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist; give a directory, or a model's name"):
        examine(tmp_path / "none")
    with pytest.raises(CheckpointError, match="is not a directory; give the one that it lies in"):
        examine(bf16 / "config.json")
    (tmp_path / "x.gguf").touch()
    with pytest.raises(CheckpointError, match="is a GGUF file; the doctor examines"):
        examine(tmp_path / "x.gguf")
    to_training(open_pieces(bf16), tmp_path / "training")
    with pytest.raises(CheckpointError, match=r"is a training checkpoint, .*: ling convert .*/training TARGET makes"):
        examine(tmp_path / "training")
    to_megatron(open_pieces(bf16), tmp_path / "megatron")
    with pytest.raises(CheckpointError, match="is a Megatron checkpoint"):
        examine(tmp_path / "megatron")


def test_headers_are_enough_for_the_plain_check(bf16: Path) -> None:
    holes = {}
    for file in bf16.glob("*.safetensors"):  # the same headers over holes
        content = file.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        with file.open("wb") as out:
            out.write(content[:header])
            out.truncate(len(content))
        holes[file.name] = len(content)
    assert len(holes) > 1
    assert serious(bf16) == []
