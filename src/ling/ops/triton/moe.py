"""Routed experts in bfloat16: gathers, SwiGLU and sums by kernels, products by torch's grouped GEMM.

A few tokens without gradients, as in decoding, take kernels of their own.

Roundings forward are the published model's. Backward, a mixing weight's gradient is taken from the SwiGLU product, not
from the expert's output, which is so not kept; kept are the tokens and the (R, 2F) projection of their rows.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import grouped_mm

from ling.ops.row_order import PaddedOrder
from ling.ops.torch import linear
from ling.ops.torch.autograd import run
from ling.ops.triton import rows
from ling.ops.triton.available import refuse
from ling.ops.triton.moe_decode import MOST_PAIRS, mix_few
from ling.ops.triton.swiglu import swiglu, swiglu_backward


def why_not(x: Tensor, ids: Tensor, mix: Tensor, counts: Tensor, gate_up_proj: Any, down_proj: Any) -> str | None:
    if not (isinstance(gate_up_proj, Tensor) and isinstance(down_proj, Tensor)):
        return "quantised weights go through grouped_linear"
    if {gate_up_proj.dtype, down_proj.dtype} != {x.dtype}:
        return "weights have another dtype than the rows"
    if len(counts) > rows.MOST_EXPERTS:
        return f"it sorts by at most {rows.MOST_EXPERTS} experts"
    reason = refuse(x, ids, mix, counts, gate_up_proj, down_proj, dtypes=(torch.bfloat16,))
    return reason or linear.why_not(x, gate_up_proj, counts) or linear.why_not(x, down_proj, counts)


def forward(x: Tensor, ids: Tensor, mix: Tensor, counts: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    if ids.numel() <= MOST_PAIRS and not torch.is_grad_enabled():
        return mix_few(x, ids, mix, gate_up_proj, down_proj)
    y: Tensor = run(_MixExperts, x, ids, mix, counts, gate_up_proj, down_proj)
    return y


class _MixExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, ids: Tensor, mix: Tensor, counts: Tensor, gate_up_proj: Tensor, down_proj: Tensor
    ) -> Tensor:
        order, k = rows.order_pairs(ids, counts, 1), ids.shape[1]
        gathered = rows.gather(x, order, k)
        gate_up = grouped_mm(gathered, gate_up_proj.transpose(1, 2), offs=order.offsets)
        out = grouped_mm(swiglu(gate_up), down_proj.transpose(1, 2), offs=order.offsets)
        ctx.save_for_backward(x, mix, gate_up, gate_up_proj, down_proj, *order)
        return rows.combine(out, order, k, mix.float(), x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mix, gate_up, gate_up_proj, down_proj, *order_parts = ctx.saved_tensors
        order, k = PaddedOrder(*order_parts), mix.shape[1]
        weights = rows.mix_of_slot(mix.float(), order)
        dout = rows.gather(dy, order, k)
        ddown = dgate_up_proj = None
        if ctx.needs_input_grad[5]:
            ddown = linear.grouped_weight_grad(dout, swiglu(gate_up, weights), order.offsets)
        dproduct = grouped_mm(dout, down_proj, offs=order.offsets)
        del dout
        dgate_up, dmix = swiglu_backward(dproduct, gate_up, weights)
        assert dmix is not None
        if ctx.needs_input_grad[4]:
            dgate_up_proj = linear.grouped_weight_grad(dgate_up, rows.gather(x, order, k), order.offsets)
        drows = grouped_mm(dgate_up, gate_up_proj, offs=order.offsets)
        dx = rows.combine(drows, order, k, None, x.dtype)
        dmix_of_pair = dmix.index_select(0, order.slot_of_pair).view(mix.shape).to(mix.dtype)
        return dx, None, dmix_of_pair, None, dgate_up_proj, ddown
