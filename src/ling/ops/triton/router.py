"""Routing in two kernels forward; backward is two float32 products and what is left of the scores' derivatives."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ling.ops.precision import at_least_float32
from ling.ops.router import RouterRule, Routing
from ling.ops.torch.autograd import run
from ling.ops.triton.available import next_power_of_two, refuse

_EXPERTS = (16, 512)
_WARPS = 8
"""Of a program that chooses: a token each."""


def why_not(x: Tensor, weight: Tensor, expert_bias: Tensor | None, rule: RouterRule) -> str | None:
    E, groups = weight.shape[0], max(rule.n_group, 1)
    if not _EXPERTS[0] <= E <= _EXPERTS[1] or E & (E - 1):
        return f"{E} experts are not a power of two from {_EXPERTS[0]} to {_EXPERTS[1]}"
    if groups & (groups - 1) or E // groups < 2:
        return f"{groups} groups do not divide {E} experts into pairs and more"
    if groups > 1 and rule.topk_group * (E // groups) < rule.num_experts_per_tok:
        return "the best groups have fewer experts than a token needs"
    if weight.dtype not in (torch.float32, x.dtype):
        return f"a weight of {weight.dtype} does not meet rows of {x.dtype}"
    if expert_bias is not None and expert_bias.dtype != torch.float32:
        return "the bias is not float32"
    return refuse(x, weight, expert_bias)


def forward(x: Tensor, weight: Tensor, expert_bias: Tensor | None, rule: RouterRule) -> Routing:
    return Routing(*run(_Route, x, weight, expert_bias, rule))


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, expert_bias: Tensor | None, rule: RouterRule
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits, ids, weights, counts = _launch(x.contiguous(), weight.contiguous(), expert_bias, rule)
        ctx.save_for_backward(x, weight, logits, ids)
        ctx.rule = rule
        ctx.mark_non_differentiable(ids, counts)
        return logits, ids, weights, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlogits: Tensor, _ids: Any, dweights: Tensor, _counts: Any) -> tuple[Tensor | None, ...]:
        x, weight, logits, ids = ctx.saved_tensors
        total = dlogits.scatter_add(1, ids, _through_scores(dweights, logits.gather(1, ids), ctx.rule))
        dx = (total @ at_least_float32(weight)).to(x.dtype) if ctx.needs_input_grad[0] else None
        dweight = (total.t() @ at_least_float32(x)).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return dx, dweight, None, None


def _through_scores(dweights: Tensor, logits: Tensor, rule: RouterRule) -> Tensor:
    """Return the gradient of the chosen logits (N, k); a weight is factor * score / sum of the token's scores."""
    scores = logits.sigmoid()
    dscores = dweights * rule.routed_scaling_factor
    if rule.num_experts_per_tok > 1:
        total = scores.sum(1, keepdim=True) + 1e-20
        dscores = (dscores - (dscores * scores / total).sum(1, keepdim=True)) / total
    return dscores * scores * (1 - scores)


def _launch(
    x: Tensor, weight: Tensor, expert_bias: Tensor | None, rule: RouterRule
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from ling.ops.triton.kernels import router as kernels

    (N, H), E, k = x.shape, weight.shape[0], rule.num_experts_per_tok
    logits = torch.empty(N, E, dtype=torch.float32, device=x.device)
    ids = torch.empty(N, k, dtype=torch.int64, device=x.device)
    weights = torch.empty(N, k, dtype=torch.float32, device=x.device)
    counts = torch.zeros(E, dtype=torch.int64, device=x.device)
    block = 16 if N <= 1024 else 64
    kernels.router_logits[(-(-N // block),)](
        x, weight, logits, N, H=H, E=E, BLOCK_N=block, BLOCK_H=32, num_warps=8, num_stages=3
    )
    kernels.choose[(-(-N // _WARPS),)](
        logits, expert_bias, ids, weights, counts, N, rule.routed_scaling_factor,
        E=E, CHOICES=k, GROUPS=max(rule.n_group, 1), KEPT=rule.topk_group, PLACES=next_power_of_two(k),
        BLOCK_N=_WARPS, num_warps=_WARPS,
    )  # fmt: skip
    return logits, ids, weights, counts
