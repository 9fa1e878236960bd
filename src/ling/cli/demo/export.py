"""The trained model as published checkpoints, each read back and checked against the training checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ling.checkpoint import load_model
from ling.checkpoint.convert import to_safetensors
from ling.checkpoint.dcp import DcpSource
from ling.checkpoint.layout import MODEL_PREFIX
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.save import ExportFormat, Precision
from ling.model import CausalLM

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float8")


@dataclass(frozen=True, slots=True)
class Exported:
    """One published checkpoint, as it came back."""

    precision: Precision
    directory: Path
    megabytes: float
    check: str
    model: CausalLM
    """Read back, computing in float32."""

    def summary(self) -> dict[str, Any]:
        return {"precision": self.precision, "megabytes": self.megabytes, "check": self.check}


def export_all(checkpoint: Path, target: Path) -> dict[Precision, Exported]:
    """Write `checkpoint` as FP32, BF16 and FP8 below `target`, and read each back."""
    return {precision: _export(checkpoint, target / precision, precision) for precision in PRECISIONS}


def _export(checkpoint: Path, directory: Path, precision: Precision) -> Exported:
    to_safetensors(open_pieces(checkpoint), directory, ExportFormat(precision=precision), overwrite=True)
    model = load_model(directory, dtype=torch.float32)
    size = sum(f.stat().st_size for f in directory.iterdir()) / 1e6
    return Exported(precision, directory, round(size, 3), _check(DcpSource(checkpoint), model, precision), model)


def _check(source: DcpSource, model: CausalLM, precision: Precision) -> str:
    """Compare every tensor with the training checkpoint's, and say what held."""
    largest = 0.0
    for name, value in model.state_dict().items():
        stored = source.read(MODEL_PREFIX + name)
        if precision == "float32":
            _require(torch.equal(value, stored), name, precision)
        elif precision == "bfloat16":
            expected = stored if name.endswith("expert_bias") else stored.bfloat16().float()
            _require(torch.equal(value, expected), name, precision)
        else:
            scale = stored.abs().max().clamp_min(1e-12)
            largest = max(largest, float((value - stored).abs().max() / scale))
    if precision == "float32":
        return "equal to the training checkpoint, bit for bit"
    if precision == "bfloat16":
        return "equal to the training checkpoint rounded to bfloat16"
    return f"within {100 * largest:.1f} % of each tensor's largest value"


def _require(equal: bool, name: str, precision: Precision) -> None:
    if not equal:
        raise AssertionError(f"{name} changed on its way through the {precision} export")
