"""Linear cross-entropy in chunks of rows, with its gradients made on the way forward.

A chunk's logits are turned into probabilities and then into their own gradient in place, multiplied into the two
gradients, and forgotten: three GEMMs per chunk, no N x V tensor. Backward only scales what forward made.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ling.ops.cross_entropy import IGNORE, CrossEntropy
from ling.ops.precision import at_least_float32
from ling.ops.torch.autograd import run

_CHUNK_ELEMENTS = 2**21
"""Logits held at once: 8 MiB of float32, about a last-level cache's share."""
_MIN_ROWS = 64


def why_not(hidden: Tensor, weight: Tensor, labels: Tensor) -> str | None:
    return None


def forward(hidden: Tensor, weight: Tensor, labels: Tensor) -> CrossEntropy:
    return CrossEntropy(*run(_LinearCrossEntropy, hidden, weight, labels))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        counted = (labels != IGNORE).nonzero().squeeze(1)
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        compute = torch.promote_types(hidden.dtype, torch.float32)
        dhidden = torch.zeros_like(hidden) if want_hidden else None
        dweight = torch.zeros_like(weight, dtype=compute) if want_weight else None
        per_token = torch.zeros(len(labels), dtype=compute, device=hidden.device)
        correct = torch.zeros(len(labels), dtype=torch.bool, device=hidden.device)
        chunk = max(_MIN_ROWS, _CHUNK_ELEMENTS // weight.shape[0])
        for index in counted.split(chunk) if len(counted) else ():
            rows, wanted = hidden.index_select(0, index), labels.index_select(0, index).unsqueeze(1)
            logits = at_least_float32(rows @ weight.t())
            best = logits.amax(1, keepdim=True)
            target = logits.gather(1, wanted)
            correct[index] = (target >= best).squeeze(1)
            exps = logits.sub_(best).exp_()
            sums = exps.sum(1, keepdim=True)
            per_token[index] = (best - target + sums.log()).squeeze(1)
            if dhidden is None and dweight is None:
                continue
            dlogits = exps.div_(sums)
            dlogits.scatter_add_(1, wanted, torch.full_like(target, -1.0))
            low = dlogits.to(hidden.dtype)
            if dhidden is not None:
                dhidden.index_copy_(0, index, low @ weight)
            if dweight is not None:
                dweight.addmm_(low.t(), rows) if low.dtype == compute else dweight.add_(low.t() @ rows)
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
