"""The C library: found, opened, and its structs as Python sees them.

It uses the OpenMP that torch brought into the process: one pool of threads serves both, and neither waits for the
other's. Python hands over addresses, so every twin checks dtype, device and contiguity before it calls.
"""

import ctypes
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ling.errors import BackendError
from ling.log import log_once
from ling.ops import packed

if TYPE_CHECKING:
    from ling.ops.linear import Weight

logger = logging.getLogger(__name__)

LEVELS = ("avx512", "avx2", "plain")
FEW_ROWS = 16
"""Up to so many rows of float32, these kernels are faster than torch's products."""
_SMALL_EXPERT = 2**17
"""Values of an expert's first matrix: below, a grouped product costs more than what it multiplies."""
FORMATS = {"float32": 0, "int8": 1, "int4": 2, "bfloat16": 3}
_VALUES = {torch.float32: FORMATS["float32"], torch.bfloat16: FORMATS["bfloat16"]}

_int64, _pointer = ctypes.c_int64, ctypes.c_void_p


class CMatrix(ctypes.Structure):
    """`Matrix` of kernels.h."""

    _fields_ = [("codes", _pointer), ("scales", _pointer), ("format", _int64), ("rows", _int64), ("columns", _int64)]


_SIGNATURES = {
    "ling_linear": [_pointer, _pointer, _int64, _int64, _pointer, _pointer],
    "ling_mlp": [_pointer, _pointer, _int64, _int64, _pointer],
    "ling_moe": [_pointer, _pointer, _int64, _int64, *[_pointer] * 5],
    "ling_rms_norm": [_pointer, _pointer, _int64, _int64, _pointer, _int64, ctypes.c_double],
    "ling_heads": [_pointer, _int64, _int64, *[_pointer] * 6],
    "ling_attend": [_pointer, _pointer, _int64, _int64, _pointer],
    "ling_stack": [_pointer, _int64, _int64, _pointer, _pointer],
    "ling_choose": [_pointer, _int64, _int64, _int64, *[_pointer] * 3],
    "ling_sketch": [_pointer, _int64, _pointer, _pointer],
    "ling_shortlist": [_pointer, _pointer, _int64, _int64, *[_pointer] * 3],
    "ling_propose": [_int64, _int64, *[_pointer] * 4],
    "ling_pack": [_pointer, _int64, _int64, _int64, _int64, _pointer, _pointer],
}


class Library:
    """The opened library. `level` is the instruction set in use."""

    def __init__(self, path: Path) -> None:
        _share_openmp()
        self._c = ctypes.CDLL(str(path))
        count = getattr(self._c, "ling_num_formats", None)
        if count is None or count() != len(FORMATS):  # built before the last change of the sources
            raise OSError("it belongs to another version of ling; install ling again")
        self._c.ling_choose_level.restype = ctypes.c_char_p
        self._c.ling_choose_level.argtypes = [ctypes.c_char_p]
        for name, arguments in _SIGNATURES.items():
            getattr(self._c, name).argtypes = arguments
        c = self._c
        self.linear, self.mlp, self.moe, self.rms_norm = c.ling_linear, c.ling_mlp, c.ling_moe, c.ling_rms_norm
        self.heads, self.attend, self.stack, self.pack = c.ling_heads, c.ling_attend, c.ling_stack, c.ling_pack
        self.choose, self.sketch, self.shortlist = c.ling_choose, c.ling_sketch, c.ling_shortlist
        self.propose = c.ling_propose
        self.level = ""
        self._choose(None)

    def _choose(self, name: str | None) -> None:
        found: bytes | None = self._c.ling_choose_level(None if name is None else name.encode())
        if found is None:
            raise BackendError(f"this processor has no {name}")
        self.level = found.decode()

    @contextmanager
    def at_level(self, name: str) -> Iterator[None]:
        """Use one of `LEVELS` instead of the best one. Raises BackendError if this processor lacks it."""
        before = self.level
        self._choose(name)
        try:
            yield
        finally:
            self._choose(before)

    def release(self) -> None:
        """Give back the memory that this thread's calls have kept for their next ones."""
        self._c.ling_release()


@cache
def library() -> Library | None:
    """Return the library, or None where it was not built or cannot be opened: said once, with the reason."""
    directory = Path(__file__).parent
    paths = [p for suffix in EXTENSION_SUFFIXES if (p := directory / f"_kernels{suffix}").exists()]
    if not paths:
        why = "they were not built, for want of a C compiler; install one and ling again"
    else:
        try:
            return Library(paths[0])
        except (OSError, AttributeError) as error:
            why = f"{paths[0].name} cannot be opened ({error})"
    log_once(logger, f"the CPU kernels are off: {why}. Everything runs through torch, more slowly.", logging.WARNING)
    return None


def release_memory() -> None:
    """Give back what the kernels keep for this thread's next calls: at its end nobody else would."""
    if (found := library()) is not None:
        found.release()


def missing() -> str | None:
    """Why no twin of this folder can run, or None."""
    if torch.compiler.is_compiling():
        return "a graph is being compiled, of which calls by address are no part"
    return None if library() is not None else "the C library is not there"


def opened() -> Library:
    """Return the library that `why_not` has found."""
    return library()  # type: ignore[return-value]


NOT_FINITE, OUTSIDE = 2, 3
"""What calls return beside 0, and 1 where memory ran out."""


def check(code: int) -> None:
    """Raise MemoryError if a call says that memory ran out, IndexError if a token or position is none of the model."""
    if code == OUTSIDE:
        raise IndexError("a token id is not in the vocabulary, or a position not in the table of rotations")
    if code:
        raise MemoryError("a CPU kernel got no memory for its intermediate results")


def why_not_rows(x: Tensor) -> str | None:
    """Why these activations cannot be taken, or None."""
    if x.dtype != torch.float32:
        return f"activations are {x.dtype}, not torch.float32"
    if not x.is_cpu:
        return f"activations are on {x.device}"
    if x.requires_grad and torch.is_grad_enabled():
        return "gradients are wanted"
    return missing()


def why_not_weight(weight: object) -> str | None:
    """Why a matrix, or a stack of them, cannot be taken, or None."""
    if isinstance(weight, packed.PackedWeight):
        return None if weight.codes.is_cpu else f"weights are on {weight.device}"
    if not isinstance(weight, Tensor):
        return f"weights are {type(weight).__name__}"
    return why_not_values(weight)


def why_not_values(weight: Tensor | None, *, may_be_bfloat16: bool = False) -> str | None:
    """Why a tensor of float32 values, or of bfloat16 that are widened as they are read, cannot be taken, or None."""
    if weight is None:
        return None
    is_known = weight.dtype == torch.float32 or (may_be_bfloat16 and weight.dtype == torch.bfloat16)
    if not is_known or not weight.is_cpu or not weight.is_contiguous():
        return f"weights are {weight.dtype} on {weight.device}, or not contiguous"
    return "gradients are wanted" if weight.requires_grad and torch.is_grad_enabled() else None


def many_floats(x: Tensor, weight: object) -> str | None:
    """Why torch's products are the faster ones, or None."""
    if not isinstance(weight, Tensor) or x.shape[0] <= FEW_ROWS:
        return None
    if weight.dim() == 3 and weight.shape[1] * weight.shape[2] < _SMALL_EXPERT:
        return None
    return f"more than {FEW_ROWS} rows of float32"


def format_of(weight: "Weight") -> str:
    return weight.format if isinstance(weight, packed.PackedWeight) else "float32"


Fields = tuple[int, int, int, int, int]
"""What a `CMatrix` holds. Structs are kept by what is in them, so none outlives a tensor that moved."""


def fields(weight: "Weight", rows: int) -> Fields:
    """Describe a weight; `rows` is what one matrix of a stack has."""
    if isinstance(weight, packed.PackedWeight):
        return weight.codes.data_ptr(), weight.scales.data_ptr(), FORMATS[weight.format], rows, weight.columns
    assert isinstance(weight, Tensor)
    return weight.data_ptr(), 0, _VALUES[weight.dtype], rows, weight.shape[-1]


def address(values: Tensor | None) -> int:
    """Return where a tensor lies; 0 where there is none."""
    return 0 if values is None else values.data_ptr()


def _share_openmp() -> None:
    """Make the OpenMP that is in the process already visible to the library; open the system's where there is none."""
    if not sys.platform.startswith("linux"):
        return
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    inside = {line.split()[-1] for line in maps.splitlines() if "libgomp" in line or "libiomp" in line}
    ctypes.CDLL(min(inside) if inside else "libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
