"""Weights prepared for ling are examined for what they are: whole, of their form, with their tokenizer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint.doctor.conftest import edit, rewrite, serious

from ling.checkpoint.doctor import examine, examine_weights
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.prepare import to_packed

MATRIX = "model.layers.1.attention.dense.weight"


@pytest.fixture(scope="session")
def original(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("prepared") / "int8"
    to_packed(open_pieces(originals / "bf16"), target, "int8", max_shard_bytes=600_000)
    return target


@pytest.fixture
def packed(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "packed"))


def describe_anew(directory: Path, **changes: object) -> None:
    told = json.loads((directory / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    edit(directory, {"quantization_config": {**told, **changes}})


def test_a_sound_one_is_said_to_be_for_ling_alone(packed: Path) -> None:
    found = examine(packed)
    assert serious(packed) == []
    assert "int8 weights, packed for ling on CPUs: no other program reads them" in found[0].what
    assert not [finding for finding in found if finding.check in ("auto-map", "format-mark", "rotary-width")]
    assert [finding for finding in examine_weights(packed) if finding.severity != "note"] == []


TRAPS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "a tensor missing": (lambda d: rewrite(d, lambda t: t.pop(MATRIX)), "packed-weights", "1 tensors that config.json"),
    "a stranger": (
        lambda d: rewrite(d, lambda t: t.update(stray=torch.zeros(3))), "packed-weights", "1 tensors have no place",
    ),
    "another form": (
        lambda d: rewrite(d, lambda t: t.update({MATRIX: t[MATRIX].float()})), "packed-weights", "the first is F32",
    ),
    "another version": (lambda d: describe_anew(d, version=2), "packed-weights", "version of the packed weights is"),
    "other formats": (lambda d: describe_anew(d, formats={"head": "int3"}), "packed-weights", "int3"),
    "a file cut short": (
        lambda d: min(d.glob("*.safetensors")).write_bytes(min(d.glob("*.safetensors")).read_bytes()[:-9]),
        "unreadable", "is truncated",
    ),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer-there", "absent"),
    "a single stop id": (lambda d: edit(d, {"eos_token_id": 2042}), "stop-ids", "leaves out"),
    "another vocabulary": (lambda d: edit(d, {"vocab_size": 4096}), "vocabulary", "4096, but embedding and head have"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAPS)
def test_every_trap_is_seen(name: str, packed: Path) -> None:
    break_it, check, said = TRAPS[name]
    break_it(packed)
    assert any(finding.check == check and said in finding.what for finding in serious(packed)), serious(packed)


def test_scales_that_are_no_numbers_are_found_among_the_values(packed: Path) -> None:
    rewrite(packed, lambda t: t[f"{MATRIX}_scales"].view(torch.int16).fill_(0x7E00))
    assert any("NaN or infinite" in finding.what for finding in examine_weights(packed))
