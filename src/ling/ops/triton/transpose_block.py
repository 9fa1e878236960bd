"""The transpose of weights in 128x128 blocks: codes are moved, not rounded."""

from torch import Tensor

from ling.ops.triton.available import FP8, refuse_fp8
from ling.ops.triton.quantize_block import Blocks, transpose


def why_not(codes: Tensor, scale: Tensor) -> str | None:
    return refuse_fp8(codes, scale, dtypes=FP8)


def forward(codes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return transpose(Blocks(codes, scale))
