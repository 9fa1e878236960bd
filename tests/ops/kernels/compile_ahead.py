"""Compile for Hopper every kernel that the twins launch at Ling-mini's sizes, without a GPU.

    python -m tests.ops.kernels.compile_ahead [NAME ...]

Twins run on meta tensors; their launches are kept instead of made, with what Triton would specialise them for, and
compiled. So there is no second list of tile sizes to keep in step. Prints a line of JSON per kernel. Needs a process
of its own: one in which Triton interprets cannot compile.
"""

import json
import sys
import time
from typing import Any, NamedTuple

import torch
import triton
from tests.ops.kernels.launches import LAUNCHES
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
    torch.uint8: "u8",
    torch.bool: "i1",
    torch.int32: "i32",
    torch.int64: "i64",
}


class Launch(NamedTuple):
    kernel: JITFunction
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int], Any]
    options: dict[str, int]

    @property
    def key(self) -> str:
        return repr((self.kernel.fn.__qualname__, self.signature, self.constants, self.attributes, self.options))


def specialise(kernel: JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
    """Describe a launch as Triton's own would: ones and Nones are constants, multiples of 16 are known to be such."""
    names = kernel.arg_names
    options = {name: value for name, value in kwargs.items() if name not in names}
    given = dict(zip(names, args)) | {name: value for name, value in kwargs.items() if name in names}
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        if parameter.is_constexpr or value is None or _is_one(value, parameter):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name], whole = "*" + TYPES[value.dtype], True
        elif isinstance(value, int):
            signature[parameter.name], whole = (
                "i32" if abs(value) < 2**31 else "i64",
                value % 16 == 0 and not parameter.do_not_specialize,
            )
        else:
            signature[parameter.name], whole = "fp32", False
        if whole:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return Launch(kernel, signature, constants, attributes, options)


def _is_one(value: Any, parameter: Any) -> bool:
    return isinstance(value, int) and value == 1 and not parameter.do_not_specialize


def launches_of(name: str) -> dict[str, Launch]:
    found: dict[str, Launch] = {}

    def keep(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launch = specialise(self, args, kwargs)
        found.setdefault(launch.key, launch)

    usual, JITFunction.run = JITFunction.run, keep
    try:
        with torch.device("meta"):
            LAUNCHES[name]()
    finally:
        JITFunction.run = usual
    return found


def compile_launch(launch: Launch) -> dict[str, Any]:
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    start = time.perf_counter()
    compiled = triton.compile(source, target=HOPPER, options=launch.options)
    return {
        "kernel": launch.kernel.fn.__name__,
        "shared_bytes": compiled.metadata.shared,
        "seconds": round(time.perf_counter() - start, 2),
        "ptx": len(compiled.asm["ptx"]),
        "mma": "wgmma" if "wgmma" in compiled.asm["ptx"] else "mma" if "mma.sync" in compiled.asm["ptx"] else "",
    }


def main() -> None:
    for name in sys.argv[1:] or LAUNCHES:
        for launch in launches_of(name).values():
            print(json.dumps({"case": name, **compile_launch(launch)}), flush=True)


if __name__ == "__main__":
    main()
