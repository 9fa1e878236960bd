"""The module `deep_gemm`, imported when it is first asked for, or why it is of no use."""

import importlib
from functools import cache
from types import ModuleType

import torch

from ling.ops import hopper
from ling.ops.fp8 import BLOCK, E4M3
from ling.ops.fp8_tensor import Fp8Tensor

DENSE, GROUPED, ALIGNMENT = (
    "fp8_gemm_nt", "m_grouped_fp8_gemm_nt_contiguous", "get_mk_alignment_for_contiguous_layout",
)  # fmt: skip
"""What we call; 1.0 had other names."""


@cache
def find() -> ModuleType | str:
    """Return the module, or the reason why there is none to use."""
    try:
        module = importlib.import_module("deep_gemm")
        alignment = getattr(module, ALIGNMENT, lambda: BLOCK)()
    except ModuleNotFoundError as error:
        if error.name == "deep_gemm":
            return "deep_gemm is not installed (pip install sgl-deep-gemm)"
        return f"deep_gemm needs {error.name}, which is not installed"
    except (ImportError, OSError, RuntimeError, AssertionError) as error:  # libraries of another CUDA, no compiler
        return f"deep_gemm does not load: {first_line(error)}"
    lacking = [name for name in (DENSE, GROUPED, ALIGNMENT) if not hasattr(module, name)]
    if lacking:
        return f"this deep_gemm has no {lacking[0]}; install sgl-deep-gemm 0.2.5 or later"
    if BLOCK % alignment:
        return (
            f"this deep_gemm reads groups of rows at multiples of {alignment}, and ours begin at multiples of {BLOCK}"
        )
    return module


def load() -> ModuleType:
    """Return the module where `refuse` had nothing to say."""
    module = find()
    assert isinstance(module, ModuleType), module
    return module


def refuse(rows: Fp8Tensor, weight: Fp8Tensor, dtype: torch.dtype) -> str | None:
    """Return why DeepGEMM cannot multiply these, None where it can."""
    if reason := hopper.refuse_device(rows.codes.device):
        return reason
    if isinstance(module := find(), str):
        return module
    if (rows.codes.dtype, weight.codes.dtype) != (E4M3, E4M3):
        other = rows.codes.dtype if rows.codes.dtype != E4M3 else weight.codes.dtype
        return f"it multiplies float8_e4m3fn, not {str(other).removeprefix('torch.')}"
    return hopper.refuse_operands(rows, weight, dtype)


def first_line(error: Exception) -> str:
    """Return what an exception says, on one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
