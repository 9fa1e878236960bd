"""The kernels that quantise to FP8 and transpose blocks: the same bytes as the reference."""

import pytest
import torch
from tests.ops.kernels.comparing import draw, same_bytes
from torch import Tensor

from ling.ops.fp8 import E4M3, E5M2, quantize_tile, quantize_training_block
from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.triton import quantize_block
from ling.ops.triton import quantize_tile as tile_twin

KINDS = [(E4M3, True), (E4M3, False), (E5M2, True)]


def awkward(*shape: int, dtype: torch.dtype) -> Tensor:
    """Values over many magnitudes, among them a row of zeros, subnormal ones, ties, an infinity and a NaN."""
    x = draw(0, *shape) * torch.logspace(-30, 30, shape[-1])
    rows = x.view(-1, shape[-1])
    rows[0] = 0
    rows[1] = torch.linspace(-448, 448, shape[-1])
    rows[2, :3] = torch.tensor([1e-45, 3e-39, -1e-40])
    rows[2, 3:] = 0
    rows[3, 5] = torch.inf
    rows[3, -1] = torch.nan
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "power_of_two"), KINDS)
@pytest.mark.parametrize("shape", [(5, 128), (40, 300), (2, 9, 1100)], ids=str)
def test_tiles_have_the_bytes_of_the_reference(
    shape: tuple[int, ...], kind: torch.dtype, power_of_two: bool, dtype: torch.dtype
) -> None:
    x = awkward(*shape, dtype=dtype)
    expected = quantize_tile(x, kind, power_of_two=power_of_two)
    for got, wanted in zip(tile_twin.forward(x, kind, power_of_two=power_of_two), expected, strict=True):
        same_bytes(got, wanted)


@pytest.mark.parametrize(("kind", "power_of_two"), KINDS)
@pytest.mark.parametrize("shape", [(128, 128), (140, 200), (3, 16, 150)], ids=str)
def test_blocks_have_the_bytes_of_the_reference_and_transpose_exactly(
    shape: tuple[int, ...], kind: torch.dtype, power_of_two: bool
) -> None:
    w = draw(1, *shape, dtype=torch.bfloat16)
    w[..., 3:7, :] *= 1e4
    w[..., :, 128:] = 0
    expected = Fp8Tensor(*quantize_training_block(w, kind, power_of_two=power_of_two), "block")
    there, back = quantize_block.quantize_both_ways(w, kind, power_of_two=power_of_two)
    for got in (there, quantize_block.transpose(back)):
        same_bytes(got.codes, expected.codes)
        same_bytes(got.scale, expected.scale)
    for got in (back, quantize_block.transpose(there)):
        same_bytes(got.codes, expected.transpose().codes)
        same_bytes(got.scale, expected.transpose().scale)
    same_bytes(quantize_block.forward(w, kind, power_of_two=power_of_two)[0], expected.codes)
