"""Linear cross-entropy in chunks of rows, as the torch twin, with the passes over a chunk's logits fused into two.

Ignored rows are computed with and count for nothing: leaving them out would mean asking the device how many there are.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ling.ops.cross_entropy import IGNORE, CrossEntropy
from ling.ops.torch.autograd import run
from ling.ops.triton.available import next_power_of_two, refuse

_CHUNK_ELEMENTS = 2**27
"""Logits held at once: 256 MiB of bfloat16, enough rows to fill a GPU."""
_MIN_ROWS = 128
_BLOCK = 4096


def why_not(hidden: Tensor, weight: Tensor, labels: Tensor) -> str | None:
    if weight.dtype != hidden.dtype:
        return "hidden states and weight have different dtypes"
    return refuse(hidden, weight, labels)


def forward(hidden: Tensor, weight: Tensor, labels: Tensor) -> CrossEntropy:
    return CrossEntropy(*run(_LinearCrossEntropy, hidden, weight, labels))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        N, V = len(hidden), len(weight)
        dhidden = torch.empty_like(hidden) if want_hidden else None
        dweight = torch.zeros_like(weight, dtype=torch.float32) if want_weight else None
        per_token = torch.empty(N, dtype=torch.float32, device=hidden.device)
        correct = torch.empty(N, dtype=torch.bool, device=hidden.device)
        chunk = max(_MIN_ROWS, _CHUNK_ELEMENTS // V // _MIN_ROWS * _MIN_ROWS)
        for first in range(0, N, chunk):
            here = slice(first, first + chunk)
            rows = hidden[here]
            logits = rows @ weight.t()
            cross_entropy_(logits, labels[here], per_token[here], correct[here], gradient=want_hidden or want_weight)
            if dhidden is not None:
                torch.mm(logits, weight, out=dhidden[here])
            if dweight is not None:
                dweight.addmm_(logits.t(), rows) if logits.dtype == dweight.dtype else dweight.add_(logits.t() @ rows)
        ctx.save_for_backward(dhidden, dweight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(per_token, correct)
        return per_token.sum(), per_token, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None, None]:
        dhidden, dweight = ctx.saved_tensors
        scaled_hidden = None if dhidden is None else dhidden * dtotal.to(dhidden.dtype)
        scaled_weight = None if dweight is None else (dweight * dtotal).to(ctx.weight_dtype)
        return scaled_hidden, scaled_weight, None


def cross_entropy_(logits: Tensor, labels: Tensor, per_token: Tensor, correct: Tensor, *, gradient: bool) -> None:
    """Fill per_token and correct (n,) from logits (n, V); these become the gradient of the sum of losses if asked."""
    from ling.ops.triton.kernels import cross_entropy as kernels

    n, V = logits.shape
    block = min(_BLOCK, next_power_of_two(V))
    kernels.cross_entropy[(n,)](
        logits, labels.contiguous(), per_token, correct, V, IGNORE=IGNORE, GRADIENT=gradient, BLOCK=block, num_warps=8
    )
