"""A tensor in FP8 as products take it, and what quantising it cost.

Rows of activations and gradients carry a scale per 1x128 tile, weights one per 128x128 block. A block's transpose is a
block, so a weight's transposed copy is made of its codes alone, exactly; that of tiles is not theirs to give.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ling.ops.fp8 import (
    BLOCK,
    E4M3,
    dequantize_e4m3_block,
    dequantize_e4m3_tile,
    quantize_tile,
    quantize_training_block,
    transpose_block,
)

Layout = Literal["tile", "block"]


@dataclass(frozen=True, slots=True)
class Fp8Tensor:
    """Codes and what they are multiplied by.

    codes   (..., M, K)  float8_e4m3fn or float8_e5m2
    scale   float32: (..., M, ceil(K / 128)) of tiles, (..., ceil(M / 128), ceil(K / 128)) of blocks
    """

    codes: Tensor
    scale: Tensor
    layout: Layout

    @classmethod
    def of_tiles(cls, x: Tensor, kind: torch.dtype = E4M3, *, power_of_two: bool = True) -> "Fp8Tensor":
        """Quantise rows (..., M, K), a scale per 128 neighbours in a row."""
        return cls(*quantize_tile(x, kind, power_of_two=power_of_two), "tile")

    @classmethod
    def of_blocks(cls, w: Tensor, kind: torch.dtype = E4M3, *, power_of_two: bool = True) -> "Fp8Tensor":
        """Quantise a weight, or a stack of them, (..., M, K), a scale per 128x128 block of each."""
        return cls(*quantize_training_block(w, kind, power_of_two=power_of_two), "block")

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return the values, computed in float32 and rounded once: exactly with power-of-two scales."""
        way_back = dequantize_e4m3_tile if self.layout == "tile" else dequantize_e4m3_block
        return way_back(self.codes, self.scale, dtype)

    def transpose(self) -> "Fp8Tensor":
        """Return a contiguous transposed copy (..., K, M) of blocks, exact because they are square."""
        assert self.layout == "block", "the transpose of row tiles has tiles across its rows"
        return Fp8Tensor(*transpose_block(self.codes, self.scale), "block")

    def rows(self, index: Tensor) -> "Fp8Tensor":
        """Gather rows (R, K) of tiles (M, K); index M gives a row of zeros."""
        assert self.layout == "tile", "a block has no rows of its own"
        codes = torch.nn.functional.pad(self.codes.view(torch.uint8), (0, 0, 0, 1))  # code 0 is the value 0
        scale = torch.nn.functional.pad(self.scale, (0, 0, 0, 1), value=1.0)
        kind = self.codes.dtype
        return Fp8Tensor(codes.index_select(0, index).view(kind), scale.index_select(0, index), "tile")


def bfloat16_values(x: Tensor | Fp8Tensor) -> Tensor:
    """Return values rounded to bfloat16, in float32, in which their products are exact."""
    return (x.dequantize(torch.bfloat16) if isinstance(x, Fp8Tensor) else x.to(torch.bfloat16)).float()


class Fp8Loss(NamedTuple):
    """What is lost of a tensor by quantising it: () float32 each, on its device."""

    underflow: Tensor
    """Share of the values other than zero that became zero."""
    distortion: Tensor
    """Norm of the error over the norm of the tensor; not finite where the tensor is not."""


MEASURED_ELEMENTS = 2**23
"""That a loss is measured of at once, in up to 24 bytes each: a layer's experts are 2^29, which float32 copies of, or a
weighted product that kernels never write down, would not fit beside."""

RowsOf = Callable[[int, int], Tensor]
"""Makes rows a to b of a matrix (M, K) that is nowhere as a whole."""


def measure_loss(x: Tensor | RowsOf, quantised: Fp8Tensor) -> Fp8Loss:
    """Compare a tensor, or rows as they are made, with its codes: by pieces, and without waiting for the device."""
    pieces = torch.stack([_compare(values, codes) for values, codes in _pieces(x, quantised)])
    lost, something = pieces[:, :2].sum(0)
    error, norm = torch.linalg.vector_norm(pieces[:, 2:], dim=0)
    return Fp8Loss(lost / something.clamp_min(1), torch.where(norm == 0, 0.0, error / norm))


def _pieces(x: Tensor | RowsOf, quantised: Fp8Tensor) -> Iterator[tuple[Tensor, Fp8Tensor]]:
    """Yield whole matrices of a stack, or rows of one that is large: at least 128, so that no block is cut."""
    M, K = quantised.shape[-2:]
    count = quantised.shape[:-2].numel()
    stack = quantised.codes.view(count, M, K)
    scale = quantised.scale.view(count, -1, quantised.scale.shape[-1])
    rows_per_scale = BLOCK if quantised.layout == "block" else 1
    matrices = max(1, MEASURED_ELEMENTS // max(1, M * K)) if count > 1 else 1
    rows = max(BLOCK, MEASURED_ELEMENTS // (K * matrices) // BLOCK * BLOCK)
    for e in range(0, count, matrices):
        for a in range(0, max(1, M), rows):
            some = slice(a // rows_per_scale, -(-(a + rows) // rows_per_scale))
            codes = Fp8Tensor(stack[e : e + matrices, a : a + rows], scale[e : e + matrices, some], quantised.layout)
            if isinstance(x, Tensor):
                yield x.reshape(count, M, K)[e : e + matrices, a : a + rows], codes
            else:
                yield x(a, min(a + rows, M))[None], codes


@torch.no_grad()
def _compare(x: Tensor, quantised: Fp8Tensor) -> Tensor:
    """Return (4,) float32: values lost, values that are not zero, norm of the error, norm of the values."""
    exact, found = x.float(), quantised.dequantize(torch.float32)
    something = (exact != 0).sum()
    lost = (exact != 0).logical_and_(found == 0).sum()
    error = torch.linalg.vector_norm(found.sub_(exact))
    return torch.stack([lost.float(), something.float(), error, torch.linalg.vector_norm(exact)])
