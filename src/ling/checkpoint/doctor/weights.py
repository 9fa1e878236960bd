"""Checks of the data: every value finite, every scale positive, nothing left empty."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ling.checkpoint.doctor.finding import Finding, error, listed, note, one_line, warning
from ling.checkpoint.names import SCALE_SUFFIX
from ling.checkpoint.source import TensorSource

_NAN_CODE = 0x7F  # e4m3fn has no infinity and this one NaN, with either sign


def examine_weights(directory: Path, progress: Callable[[int, int], None] | None = None) -> list[Finding]:
    """Read every tensor once and return what is wrong with the values.

    progress  called with (tensors done, tensors in all)
    Raises CheckpointError if the files contradict the index.
    """
    source = TensorSource(directory)
    faults: dict[str, list[str]] = {"nan": [], "scale": [], "zero": [], "rounded": []}
    for done, (key, tensor) in enumerate(source.read(list(source.tensors)), start=1):
        if (fault := _fault(key, tensor)) is not None:
            faults[fault].append(key)
        if progress is not None:
            progress(done, len(source.tensors))
    return [
        dataclasses.replace(finding, check="weights", where=one_line(finding.where)) for finding in _findings(faults)
    ]


def _fault(key: str, tensor: Tensor) -> str | None:
    if not tensor.numel():
        return None
    if tensor.dtype == torch.float8_e4m3fn:
        codes = tensor.view(torch.uint8)
        return "nan" if bool(((codes & _NAN_CODE) == _NAN_CODE).any()) else None
    if not tensor.is_floating_point() or tensor.dtype.itemsize == 1:
        return None
    least, most = (float(x) for x in tensor.aminmax())
    if not (math.isfinite(least) and math.isfinite(most)):
        return "nan"
    if key.endswith(SCALE_SUFFIX):
        return "scale" if least <= 0 else None
    if key.endswith("expert_bias"):
        same = bool(torch.equal(tensor.float().bfloat16().float(), tensor.float()))
        return "rounded" if same and least < most else None
    return "zero" if least == most == 0 else None


def _findings(faults: dict[str, list[str]]) -> Iterator[Finding]:
    again = "copy the file again; if it stays, the training run diverged"
    if keys := faults["nan"]:
        yield error(listed(keys), f"{len(keys)} tensors have values that are NaN or infinite", again)
    if keys := faults["scale"]:
        yield error(
            listed(keys), f"{len(keys)} grids of scales are not positive", "convert again from a whole checkpoint"
        )
    if keys := faults["zero"]:
        yield warning(listed(keys), f"{len(keys)} tensors are zero throughout", "a matrix that was never filled?")
    if keys := faults["rounded"]:
        yield note(
            listed(keys),
            f"{len(keys)} expert biases hold bfloat16 values: they were rounded once",
            "convert again from the training checkpoint for the exact ones",
        )
