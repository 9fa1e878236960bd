"""What the tests of kernels share: making inputs, and comparing bytes and bfloat16 values.

The same tests run in the interpreter and, collected once more by tests/gpu, on a GPU: inputs are made on the default
device.
"""

import torch
from torch import Tensor

from ling.testing.tolerances import Tolerance

KERNEL_32 = Tolerance(1e-6, 2e-5, "float32 sums in another order, products fused or not")
KERNEL_16 = Tolerance(1e-6, 2**-6, "bfloat16 results: half a dozen roundings of 2^-9, against float32 arithmetic")


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return here((torch.randn(shape, generator=generator, device="cpu") * scale).to(dtype))


def here(x: Tensor) -> Tensor:
    return x.to(torch.get_default_device())


def same_bytes(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape, (got.shape, expected.shape)
    assert got.dtype == expected.dtype, (got.dtype, expected.dtype)
    differ = got.flatten().view(torch.uint8) != expected.flatten().view(torch.uint8)
    assert not differ.any(), f"{int(differ.sum())} of {differ.numel()} bytes differ"


def tolerance(dtype: torch.dtype) -> Tolerance:
    return KERNEL_16 if dtype == torch.bfloat16 else KERNEL_32
