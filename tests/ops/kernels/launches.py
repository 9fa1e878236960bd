"""Calls that launch every kernel, at the sizes of Ling-mini, on whatever device is the default (meta, to compile).

Each returns nothing; names say which tests select them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ling.ops.triton import norm

N, H = 4096, 2048
BF16 = torch.bfloat16


def bf16(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=BF16)


def norm_forward_and_backward() -> None:
    y, inv_rms = norm.rms_norm(bf16(N, H), bf16(H), 1e-6)
    norm.rms_norm_backward(y, bf16(N, H), bf16(H), inv_rms)


def norm_and_codes() -> None:
    norm.rms_norm_e4m3(bf16(N, H), bf16(H), 1e-6)


LAUNCHES: dict[str, Callable[[], None]] = {
    f.__name__: f
    for f in (
        norm_forward_and_backward,
        norm_and_codes,
    )
}
