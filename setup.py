"""What pyproject.toml cannot say: the C library of CPU kernels (src/ling/ops/cpu/kernels), optional.

It is no Python extension: nothing of Python or torch is in it, and `ling.ops.cpu.library` opens it with ctypes. OpenMP
is not linked, because torch brings its own; the library finds it in the process, so that both share one thread pool.
Without a C compiler, or with one that does not know GNU C, the package installs all the same and runs through torch.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup

KERNELS = Path("src/ling/ops/cpu/kernels")
LINUX = sys.platform.startswith("linux")

setup(
    ext_modules=[
        Extension(
            "ling.ops.cpu._kernels",
            sources=[str(path) for path in sorted(KERNELS.glob("*.c"))],
            depends=[str(path) for path in sorted(KERNELS.glob("*.h"))],
            # No contraction: a multiply-add is fused where the source says so, on every processor alike.
            extra_compile_args=["-std=gnu11", "-O3", "-g0", "-ffp-contract=off", *(["-fopenmp"] if LINUX else [])],
            optional=True,
        )
    ]
)
