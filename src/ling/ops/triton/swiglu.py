"""SwiGLU of a fused gate-up projection: one pass over memory each way, also with a weight per row and in FP8."""

import torch
from torch import Tensor

from ling.ops.fp8 import E4M3
from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.triton.available import next_power_of_two

_BLOCK = 512
_TILE = 2048


def swiglu(gate_up: Tensor, mix: Tensor | None = None) -> Tensor:
    """Return silu(gate) * up, times the weight of its row if there is one.

    gate_up (R, 2F), mix (R,) float32 -> (R, F). Without weights rounded after each product, as the published model
    does; with them in float32 and rounded once, as Megatron does.
    """
    out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
    _forward(gate_up, mix, out, None, True)
    return out


def swiglu_fp8(gate_up: Tensor, mix: Tensor, *, power_of_two: bool = True) -> Fp8Tensor:
    """Return silu(gate) * up times the weight of its row in E4M3, quantised from float32: (R, 2F), (R,) -> (R, F)."""
    codes = _empty_codes(gate_up.shape[0], gate_up.shape[1] // 2, E4M3, gate_up.device)
    _forward(gate_up, mix, None, codes, power_of_two)
    return codes


def swiglu_backward(dproduct: Tensor, gate_up: Tensor, mix: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of gate_up (R, 2F) and of mix (R,) float32; dproduct (R, F)."""
    return _backward(dproduct, gate_up, mix, None, True)


def swiglu_backward_fp8(
    dproduct: Tensor, gate_up: Tensor, mix: Tensor, kind: torch.dtype = E4M3, *, power_of_two: bool = True
) -> tuple[Tensor, Tensor, Fp8Tensor]:
    """Return what `swiglu_backward` does, and the gradient of gate_up in FP8; F must be a multiple of 128."""
    codes = _empty_codes(gate_up.shape[0], gate_up.shape[1], kind, gate_up.device)
    dgate_up, dmix = _backward(dproduct, gate_up, mix, codes, power_of_two)
    assert dmix is not None
    return dgate_up, dmix, codes


def _forward(gate_up: Tensor, mix: Tensor | None, out: Tensor | None, codes: Fp8Tensor | None, pow2: bool) -> None:
    from ling.ops.triton.kernels import swiglu as kernels

    R, F = gate_up.shape[0], gate_up.shape[1] // 2
    rows, block = _tile(F, codes)
    kernels.swiglu_forward[(-(-R // rows), -(-F // block))](
        gate_up.contiguous(), mix, out, *_parts(codes), R, F=F, ROWS=rows, BLOCK=block, POWER_OF_TWO=pow2
    )


def _backward(
    dproduct: Tensor, gate_up: Tensor, mix: Tensor | None, codes: Fp8Tensor | None, pow2: bool
) -> tuple[Tensor, Tensor | None]:
    from ling.ops.triton.kernels import swiglu as kernels

    R, F = dproduct.shape
    gate_up, dproduct = gate_up.contiguous(), dproduct.contiguous()
    dgate_up = torch.empty_like(gate_up)
    dmix = None if mix is None else torch.empty(R, dtype=torch.float32, device=gate_up.device)
    rows, block = _tile(F, codes)
    kernels.swiglu_backward[(-(-R // rows),)](
        dproduct, gate_up, mix, dgate_up, *_parts(codes), dmix, R, F=F, ROWS=rows, BLOCK=block, POWER_OF_TWO=pow2
    )
    return dgate_up, dmix


def _empty_codes(R: int, K: int, kind: torch.dtype, device: torch.device) -> Fp8Tensor:
    scale = torch.empty(R, -(-K // 128), dtype=torch.float32, device=device)
    return Fp8Tensor(torch.empty(R, K, dtype=kind, device=device), scale, "tile")


def _parts(codes: Fp8Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if codes is None else (codes.codes, codes.scale)


def _tile(F: int, codes: Fp8Tensor | None) -> tuple[int, int]:
    block = min(_BLOCK, max(next_power_of_two(F), 1 if codes is None else 128))
    return max(1, _TILE // block), block
