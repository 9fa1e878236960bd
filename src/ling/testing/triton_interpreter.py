"""Triton's interpreter with exact numbers: kernels run on a CPU, element for element as on a device.

By itself the interpreter (3.6 and 3.7) truncates float32 to bfloat16, computes with bfloat16's raw bits, loses carries
when it rounds to E4M3 and E5M2, and multiplies what is left. `prepare` replaces the four functions that do so: casts
go through torch, bfloat16 and FP8 are computed in float32. Not covered: functions of one argument and reductions on
bfloat16, which kernels take in float32 anyway.

Triton decides at import whether its own functions are interpreted: `TRITON_INTERPRET=1` must be set by then, for which
tests/conftest.py sees.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ling.ops.triton import available

_LIMITS = {"fp8e4nv": 448.0, "fp8e5": 57344.0}
_TORCH_DTYPES = {
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5": torch.float8_e5m2,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}
_prepared = False


def prepare() -> None:
    """Make the interpreter's numbers exact; at once where that is done already."""
    global _prepared
    if _prepared:
        return
    from triton import language
    from triton.runtime import interpreter

    assert isinstance(language.sum, interpreter.InterpretedFunction), (
        "TRITON_INTERPRET=1 was not set at triton's import"
    )
    _make_exact(interpreter)
    _prepared = True


@contextmanager
def interpreted() -> Iterator[None]:
    """Let Triton twins take CPU tensors, in the interpreter."""
    prepare()
    import triton

    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        available.interpreting = True
        try:
            yield
        finally:
            available.interpreting = False


def _make_exact(interpreter: Any) -> None:
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    usual_cast, usual_binary = builder.cast_impl, builder.binary_op

    def cast(self: Any, source: Any, target: Any) -> Any:
        names = str(source.dtype.scalar), str(target.scalar)
        if "bf16" in names and all(name in _TORCH_DTYPES for name in names):
            return handle(_convert(source.data, *names), target.scalar)
        if names[0] == "bf16":
            return usual_cast(self, _widened(source), target)
        if names[1] == "bf16":
            return handle(_convert(source.data.astype(np.float32), "fp32", "bf16"), target.scalar)
        return usual_cast(self, source, target)

    def binary(self: Any, left: Any, right: Any, operation: Callable[..., Any]) -> Any:
        if str(left.dtype.scalar) != "bf16":
            return usual_binary(self, left, right, operation)
        result = operation(_widened(left).data, _widened(right).data)
        if result.dtype != np.bool_:
            result = _convert(result, "fp32", "bf16")
        return handle(result, left.dtype.scalar)

    def dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        product = np.matmul(_widened(a).data, _widened(b).data, dtype=d.data.dtype)
        return handle(product + d.data, d.dtype.scalar)

    def _widened(x: Any) -> Any:
        name = str(x.dtype.scalar)
        if name not in ("bf16", *_LIMITS):
            return x
        return handle(_convert(x.data, name, "fp32"), interpreter.tl.float32)

    def convert_float(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        return _convert(data, str(source), str(target))

    interpreter._convert_float = convert_float
    builder.cast_impl, builder.binary_op, builder.create_dot = cast, binary, dot


def _convert(data: Any, source: str, target: str) -> Any:
    """Return numpy data of one format in another: bfloat16 as uint16, FP8 as uint8, as the interpreter keeps them."""
    values = torch.from_numpy(np.ascontiguousarray(data))
    if source in ("bf16", *_LIMITS):
        values = values.view(_TORCH_DTYPES[source])
    if target in _LIMITS:
        values = values.float().clamp(-_LIMITS[target], _LIMITS[target])
    values = values.to(_TORCH_DTYPES[target])
    if target == "bf16":
        values = values.view(torch.uint16)
    elif target in _LIMITS:
        values = values.view(torch.uint8)
    return values.numpy()
