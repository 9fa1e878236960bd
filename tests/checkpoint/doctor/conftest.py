"""Healthy checkpoints to break: a small model in BF16 and FP8, with the tokenizer of the bundled one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ling.checkpoint import save_model
from ling.checkpoint.doctor import Finding, examine
from ling.checkpoint.pieces import TOKENIZER_FILES
from ling.checkpoint.save import ExportFormat
from ling.engine.bundled import bundled_directory
from ling.testing.models import tiny_model


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("healthy")
    model = tiny_model(
        vocab_size=2048, hidden_size=128, num_hidden_layers=4, first_k_dense_replace=2, num_experts=8,
        num_experts_per_tok=2, rope_theta=600000.0, max_position_embeddings=512, pad_token_id=2042,
        eos_token_id=(2042, 2045),
    )  # fmt: skip
    for name, precision in (("bf16", "bfloat16"), ("fp8", "float8")):
        save_model(model, root / name, export=ExportFormat(precision=precision), max_shard_bytes=600_000)
        for file in TOKENIZER_FILES:
            if (bundled_directory() / file).exists():
                shutil.copy(bundled_directory() / file, root / name)
    return root


@pytest.fixture
def bf16(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "bf16", tmp_path / "bf16"))


@pytest.fixture
def fp8(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "fp8", tmp_path / "fp8"))


def edit(
    directory: Path, changes: dict[str, object] | None = None, *, drop: str = "", file: str = "config.json"
) -> None:
    """Change keys of a JSON file, and drop those named."""
    tree = json.loads((directory / file).read_text(encoding="utf-8"))
    kept = {key: value for key, value in tree.items() if key not in drop.split()}
    (directory / file).write_text(json.dumps({**kept, **(changes or {})}), encoding="utf-8")


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Apply `change` to all tensors, and write them back as one file."""
    tensors = {key: value for file in directory.glob("*.safetensors") for key, value in load_file(file).items()}
    change(tensors)
    for file in (*directory.glob("*.safetensors"), directory / "model.safetensors.index.json"):
        file.unlink()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def serious(directory: Path) -> list[Finding]:
    """Return what is worse than a note."""
    return [finding for finding in examine(directory) if finding.severity != "note"]
