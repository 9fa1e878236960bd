"""Launches of the kernels for weight gradients, which four twins share."""

import torch
from torch import Tensor

from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.triton.available import FLOATS, FP8, next_power_of_two, refuse, refuse_fp8

Operand = Tensor | Fp8Tensor


def refuse_operands(*operands: Operand, offsets: Tensor | None = None) -> str | None:
    """Return why the kernels cannot read these rows or columns, None where they can."""
    for operand in operands:
        if isinstance(operand, Tensor):
            reason = refuse(operand, offsets, dtypes=FLOATS)
        elif operand.layout != "tile":
            reason = "codes must be in tiles"
        else:
            reason = refuse_fp8(operand.codes, operand.scale, offsets, dtypes=FP8)
        if reason is not None:
            return reason
    return None


def of_rows(gradients: Operand, rows: Operand, offsets: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return gradients.T @ rows in bfloat16: (S, M), (S, K) -> (M, K), or (E, M, K) where there are offsets (E,)."""
    from ling.ops.triton.kernels import fp8_weight_grad as kernels

    (S, M), K = gradients.shape, rows.shape[1]
    out = _result(offsets, M, K, dtype, gradients)
    tiles = _tiles(M, K)
    kernels.weight_grad[_grid(out, tiles)](
        *_parts(gradients), *_parts(rows), offsets, out, S, M=M, K=K, **tiles, BLOCK_R=64, num_warps=8, num_stages=3
    )
    return out


def of_columns(gradients: Fp8Tensor, rows: Fp8Tensor, offsets: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return gradients @ rows.T in FP8: (M, S), (K, S) -> (M, K), or (E, M, K); groups begin at multiples of 128."""
    from ling.ops.triton.kernels import fp8_weight_grad as kernels

    (M, S), K = gradients.shape, rows.shape[0]
    out = _result(offsets, M, K, dtype, gradients)
    tiles = _tiles(M, K)
    kernels.columns[_grid(out, tiles)](
        *_parts(gradients), *_parts(rows), offsets, out, S, M=M, K=K, **tiles, num_warps=8, num_stages=4
    )
    return out


def _result(offsets: Tensor | None, M: int, K: int, dtype: torch.dtype, like: Operand) -> Tensor:
    device = like.device if isinstance(like, Tensor) else like.codes.device
    return torch.empty((M, K) if offsets is None else (len(offsets), M, K), dtype=dtype, device=device)


def _tiles(M: int, K: int) -> dict[str, int]:
    return {name: min(128, max(16, next_power_of_two(size))) for name, size in (("BLOCK_M", M), ("BLOCK_K", K))}


def _grid(out: Tensor, tiles: dict[str, int]) -> tuple[int, int]:
    M, K = out.shape[-2:]
    return -(-M // tiles["BLOCK_M"]) * -(-K // tiles["BLOCK_K"]), len(out) if out.dim() == 3 else 1


def _parts(operand: Operand) -> tuple[Tensor, Tensor | None]:
    if isinstance(operand, Fp8Tensor):
        return operand.codes.contiguous(), operand.scale.contiguous()
    return operand.contiguous(), None
