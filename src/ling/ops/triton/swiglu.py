"""SwiGLU of a fused gate-up projection: one pass over memory each way, also with a weight per row and quantised."""

from typing import NamedTuple

import torch
from torch import Tensor

from ling.ops.triton.available import next_power_of_two

_BLOCK = 512
_TILE = 2048


class Codes(NamedTuple):
    """What `quantize_e4m3_tile` makes of rows."""

    codes: Tensor
    """(R, K) float8_e4m3fn."""
    scale: Tensor
    """(R, ceil(K / 128)) float32."""


def swiglu(gate_up: Tensor, mix: Tensor | None = None) -> Tensor:
    """Return silu(gate) * up, times the weight of its row if there is one.

    gate_up (R, 2F), mix (R,) float32 -> (R, F). Without weights rounded after each product, as the published model
    does; with them in float32 and rounded once, as Megatron does.
    """
    return _forward(gate_up, mix, quantize=False)[0]


def swiglu_e4m3(gate_up: Tensor, mix: Tensor | None = None) -> tuple[Tensor, Codes]:
    """Return what `swiglu` does and its codes."""
    out, codes = _forward(gate_up, mix, quantize=True)
    assert codes is not None
    return out, codes


def swiglu_backward(
    dproduct: Tensor, gate_up: Tensor, mix: Tensor | None = None, *, quantize: bool = False
) -> tuple[Tensor, Tensor | None, Codes | None]:
    """Return the gradients of gate_up (R, 2F) and of mix (R,), and codes of the former if asked.

    dproduct (R, F); to quantise, F must be a multiple of 128.
    """
    from ling.ops.triton.kernels import swiglu as kernels

    R, F = dproduct.shape
    assert not (quantize and F % 128), F
    gate_up, dproduct = gate_up.contiguous(), dproduct.contiguous()
    dgate_up = torch.empty_like(gate_up)
    dmix = None if mix is None else torch.empty(R, dtype=torch.float32, device=gate_up.device)
    codes = _codes(gate_up) if quantize else None
    rows, block = _tile(F, quantize)
    kernels.swiglu_backward[(-(-R // rows),)](
        dproduct, gate_up, mix, dgate_up, codes and codes.codes, codes and codes.scale, dmix, R,
        F=F, ROWS=rows, BLOCK=block, QUANTIZE=quantize,
    )  # fmt: skip
    return dgate_up, dmix, codes


def _forward(gate_up: Tensor, mix: Tensor | None, *, quantize: bool) -> tuple[Tensor, Codes | None]:
    from ling.ops.triton.kernels import swiglu as kernels

    R, F = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(R, F)
    codes = _codes(out) if quantize else None
    rows, block = _tile(F, quantize)
    kernels.swiglu_forward[(-(-R // rows), -(-F // block))](
        gate_up.contiguous(), mix, out, codes and codes.codes, codes and codes.scale, R,
        F=F, ROWS=rows, BLOCK=block, QUANTIZE=quantize,
    )  # fmt: skip
    return out, codes


def _codes(like: Tensor) -> Codes:
    R, K = like.shape
    codes = torch.empty_like(like, dtype=torch.float8_e4m3fn)
    return Codes(codes, torch.empty(R, -(-K // 128), dtype=torch.float32, device=like.device))


def _tile(F: int, quantize: bool) -> tuple[int, int]:
    block = min(_BLOCK, max(next_power_of_two(F), 128 if quantize else 1))
    return max(1, _TILE // block), block
