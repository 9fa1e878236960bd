"""Routed experts with FP8 operands, of fused kernels: tokens are quantised once and gathered as codes, SwiGLU's product
and its gradient leave their kernels quantised. What is computed, kept and rounded is the composition's. The product is
written down as codes alone: whoever watches is shown rows of it that are made again, a few at a time.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ling.ops import fp8_experts
from ling.ops.fp8_linear import Fp8Rule, Watch
from ling.ops.fp8_matmul import fp8_grouped_weight_grad
from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.row_order import PaddedOrder
from ling.ops.torch.autograd import run
from ling.ops.triton import rows
from ling.ops.triton.available import refuse_fp8
from ling.ops.triton.swiglu import swiglu_backward_fp8, swiglu_fp8


def why_not(
    x: Tensor, ids: Tensor, mix: Tensor, counts: Tensor, gate_up_proj: Tensor, down_proj: Tensor,
    rule: Fp8Rule, watch: Watch | None = None,
) -> str | None:  # fmt: skip
    if rule.fp8_weight_grad:
        return "columns are quantised by the composition"
    if x.shape[1] % 16 or gate_up_proj.shape[1] % 256:
        return "it takes hidden sizes in multiples of 16 and expert widths in multiples of 128"
    if len(counts) > rows.MOST_EXPERTS:
        return f"it sorts by at most {rows.MOST_EXPERTS} experts"
    return refuse_fp8(x, ids, mix, counts, gate_up_proj, down_proj)


def forward(
    x: Tensor, ids: Tensor, mix: Tensor, counts: Tensor, gate_up_proj: Tensor, down_proj: Tensor,
    rule: Fp8Rule, watch: Watch | None = None,
) -> Tensor:  # fmt: skip
    y: Tensor = run(_Fp8MixExperts, x, ids, mix, counts, gate_up_proj, down_proj, rule, watch)
    return y


class _Fp8MixExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, ids: Tensor, mix: Tensor, counts: Tensor, gate_up_proj: Tensor, down_proj: Tensor,
        rule: Fp8Rule, watch: Watch | None,
    ) -> Tensor:  # fmt: skip
        order, k = rows.order_pairs(ids, counts, rule.row_multiple), ids.shape[1]
        tokens = rule.rows(x, watch, "input")
        gathered = rows.gather_fp8(tokens, order, k)
        gate_up = rule.multiply_groups(gathered, rule.weight(gate_up_proj, watch, "gate_up"), order.offsets, x.dtype)
        weights = rows.mix_of_slot(mix.float(), order)
        if watch is not None:
            _clear_rows_of_nobody(gate_up, order, mix.numel())
        weighted = swiglu_fp8(gate_up, weights, power_of_two=rule.power_of_two)
        if watch is not None:
            watch("product", lambda a, b: fp8_experts.swiglu(gate_up[a:b]).mul_(weights[a:b, None]), weighted)
        out = rule.multiply_groups(weighted, rule.weight(down_proj, watch, "down"), order.offsets, x.dtype)
        ctx.save_for_backward(tokens.codes, tokens.scale, gate_up, mix, gate_up_proj, down_proj, *order)
        ctx.rule, ctx.watch, ctx.dtype = rule, watch, x.dtype
        return rows.combine(out, order, k, None, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        codes, scale, gate_up, mix, gate_up_proj, down_proj, *order_parts = ctx.saved_tensors
        rule: Fp8Rule = ctx.rule
        order, k = PaddedOrder(*order_parts), mix.shape[1]
        weights = rows.mix_of_slot(mix.float(), order)
        dtokens = rows.gather_fp8(rule.rows(dy, ctx.watch, "output gradient", rule.gradient_kind), order, k)
        dweighted = rule.multiply_groups(dtokens, rule.weight(down_proj).transpose(), order.offsets, ctx.dtype)
        del dtokens
        ddown = dgate_up_proj = None
        if ctx.needs_input_grad[5]:
            weighted = swiglu_fp8(gate_up, weights, power_of_two=rule.power_of_two)  # the codes of forward, made again
            ddown = fp8_grouped_weight_grad(rows.gather(dy, order, k), weighted, order.offsets, down_proj.dtype)
        if ctx.watch is not None:
            _clear_rows_of_nobody(dweighted, order, mix.numel())
        dgate_up, dmix, gradients = swiglu_backward_fp8(
            dweighted, gate_up, weights, rule.gradient_kind, power_of_two=rule.power_of_two
        )
        del dweighted
        if ctx.watch is not None:
            ctx.watch("hidden gradient", dgate_up, gradients)
        if ctx.needs_input_grad[4]:
            gathered = rows.gather_fp8(Fp8Tensor(codes, scale, "tile"), order, k)
            dgate_up_proj = fp8_grouped_weight_grad(dgate_up, gathered, order.offsets, gate_up_proj.dtype)
        drows = rule.multiply_groups(gradients, rule.weight(gate_up_proj).transpose(), order.offsets, ctx.dtype)
        dx = rows.combine(drows, order, k, None, ctx.dtype)
        dmix_of_pair = dmix.index_select(0, order.slot_of_pair).view(mix.shape).to(mix.dtype)
        return dx, None, dmix_of_pair, None, dgate_up_proj, ddown, None, None


def _clear_rows_of_nobody(values: Tensor, order: PaddedOrder, num_pairs: int) -> None:
    """Make undefined rows zero: no product reads them, but a norm over all rows would."""
    values.masked_fill_((order.pair_of_slot == num_pairs)[:, None], 0)
