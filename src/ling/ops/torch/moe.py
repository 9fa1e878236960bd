"""Routed experts as one autograd function: six grouped GEMMs and a handful of passes over memory.

In float32 the mixing weight is applied to the SwiGLU product instead of the expert's output (Megatron's order):
equal in exact arithmetic, cheaper because F < H, and the sum over a token's k rows needs no product any more.

When decoding on a CPU, few of the experts have a row. A grouped GEMM still visits every one of them, which for small
experts costs more than the products: one matrix-vector product per row is then up to ten times as fast.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import grouped_mm, silu

from ling.ops.row_order import order_rows
from ling.ops.torch import linear
from ling.ops.torch.autograd import run

_EXPERTS_PER_ROW = 4
"""From so many experts per row on, rows are few."""


def why_not(x: Tensor, ids: Tensor, mix: Tensor, counts: Tensor, gate_up_proj: Any, down_proj: Any) -> str | None:
    if not isinstance(gate_up_proj, Tensor) or not isinstance(down_proj, Tensor):
        return "quantised weights go through grouped_linear"
    if x.dtype != torch.float32:
        return "the published rounding order of low precision is the composition's"
    return linear.why_not(x, gate_up_proj, counts) or linear.why_not(x, down_proj, counts)


def forward(x: Tensor, ids: Tensor, mix: Tensor, counts: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    few = ids.numel() <= len(counts) // _EXPERTS_PER_ROW
    if few and x.device.type == "cpu" and not torch.is_grad_enabled():
        return _row_by_row(x, ids, mix, gate_up_proj, down_proj)
    y: Tensor = run(_MixExperts, x, ids, mix, counts, gate_up_proj, down_proj)
    return y


def _row_by_row(x: Tensor, ids: Tensor, mix: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    k = ids.shape[1]
    experts = ids.flatten().tolist()
    gate_up = torch.stack([torch.mv(gate_up_proj[e], x[i // k]) for i, e in enumerate(experts)])
    gate, up = gate_up.chunk(2, dim=1)
    product = silu(gate).mul_(up).mul_(mix.view(-1, 1))
    out = torch.stack([torch.mv(down_proj[e], product[i]) for i, e in enumerate(experts)])
    return out.view(len(x), k, -1).sum(1)


class _MixExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, ids: Tensor, mix: Tensor, counts: Tensor, gate_up_proj: Tensor, down_proj: Tensor
    ) -> Tensor:
        k = ids.shape[1]
        order = order_rows(ids, counts)
        token_of_row = order.pair_of_row // k
        rows = x.index_select(0, token_of_row)
        mix_of_row = mix.flatten().index_select(0, order.pair_of_row).unsqueeze(1)
        gate_up = grouped_mm(rows, gate_up_proj.transpose(1, 2), offs=order.offsets)
        gate, up = gate_up.chunk(2, dim=1)
        product = silu(gate).mul_(up)
        out = grouped_mm(product * mix_of_row, down_proj.transpose(1, 2), offs=order.offsets)
        ctx.save_for_backward(
            rows, gate_up, mix_of_row, gate_up_proj, down_proj, token_of_row, order.row_of_pair, order.offsets
        )
        ctx.k = k
        return _sum_rows(out, token_of_row, order.row_of_pair, k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, gate_up, mix_of_row, gate_up_proj, down_proj, token_of_row, row_of_pair, offsets = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=1)
        silu_gate = silu(gate)
        product = silu_gate * up
        dout = dy.index_select(0, token_of_row)
        dweighted = grouped_mm(dout, down_proj, offs=offsets)
        ddown = linear.grouped_weight_grad(dout, product * mix_of_row, offsets)
        dmix_of_row = product.mul_(dweighted).sum(1)
        dproduct = dweighted.mul_(mix_of_row)
        dgate_up = torch.empty_like(gate_up)
        dgate, dup = dgate_up.chunk(2, dim=1)
        torch.mul(dproduct, silu_gate, out=dup)
        torch.ops.aten.silu_backward(dproduct.mul_(up), gate, grad_input=dgate)
        drows = grouped_mm(dgate_up, gate_up_proj, offs=offsets)
        dgate_up_proj = linear.grouped_weight_grad(dgate_up, rows, offsets)
        dmix = dmix_of_row.index_select(0, row_of_pair).view(-1, ctx.k)
        return _sum_rows(drows, token_of_row, row_of_pair, ctx.k), None, dmix, None, dgate_up_proj, ddown


def _sum_rows(rows: Tensor, token_of_row: Tensor, row_of_pair: Tensor, k: int) -> Tensor:
    """Add up the k rows of each token: (R, H) -> (N, H), always in the same order.

    On a CPU rows are added one after the other where they belong; on a GPU that would race, so they are gathered.
    """
    N = len(row_of_pair) // k
    if rows.device.type == "cpu":
        return rows.new_zeros(N, rows.shape[1]).index_add_(0, token_of_row, rows)
    return rows.index_select(0, row_of_pair).view(N, k, -1).sum(1)
