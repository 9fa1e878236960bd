"""What the tests of kernels share: making inputs, and comparing bytes and bfloat16 values."""

import torch
from torch import Tensor

from ling.testing.tolerances import Tolerance

KERNEL_32 = Tolerance(1e-6, 2e-5, "float32 sums in another order, products fused or not")
KERNEL_16 = Tolerance(1e-6, 2**-6, "bfloat16 results: half a dozen roundings of 2^-9, against float32 arithmetic")


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def same_bytes(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape, (got.shape, expected.shape)
    assert got.dtype == expected.dtype, (got.dtype, expected.dtype)
    differ = got.flatten().view(torch.uint8) != expected.flatten().view(torch.uint8)
    assert not differ.any(), f"{int(differ.sum())} of {differ.numel()} bytes differ"


def tolerance(dtype: torch.dtype) -> Tolerance:
    return KERNEL_16 if dtype == torch.bfloat16 else KERNEL_32
