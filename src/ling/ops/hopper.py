"""What products of FP8 operands by libraries need: a Hopper GPU, and operands of whole blocks.

Hopper is where tiles of 1x128 meet blocks of 128x128 with float32 scales; later GPUs take scales of eight bits, powers
of two, in another layout, which we do not make.
"""

import torch

from ling.ops.fp8 import BLOCK
from ling.ops.fp8_tensor import Fp8Tensor


def refuse_device(device: torch.device) -> str | None:
    """Return why a library cannot multiply there, None where it can."""
    if device.type != "cuda":
        return f"its products run on CUDA devices, not on {device.type}"
    if torch.version.hip:
        return "its products are for NVIDIA's GPUs"
    major, minor = torch.cuda.get_device_capability(device)
    if major != 9:
        return (
            f"it multiplies tiles by blocks on Hopper GPUs (compute capability 9.0), and this one has {major}.{minor}"
        )
    return None


def refuse_operands(rows: Fp8Tensor, weight: Fp8Tensor, dtype: torch.dtype) -> str | None:
    """Return why rows (N, K) and a weight (..., M, K) are not for a library, None where they are."""
    if (rows.layout, weight.layout) != ("tile", "block"):
        return f"it multiplies tiles by blocks, not {rows.layout}s by {weight.layout}s"
    if dtype != torch.bfloat16:
        return f"its results are bfloat16, not {str(dtype).removeprefix('torch.')}"
    M, K = weight.shape[-2:]
    if M % BLOCK or K % BLOCK:
        return f"a weight of {M} x {K} is not made of whole blocks of {BLOCK} x {BLOCK}"
    return None
