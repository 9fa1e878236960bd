"""Routed experts whose products take FP8 operands, as one autograd function.

    x (N, H) --quantise once per token--> codes --gather--> rows (S, H), room between experts
    rows --gate_up--> (S, 2F) --swiglu, times the mixing weight, quantise--> (S, F) --down--> (S, H) --sum per token-->

The mixing weight is applied before the down projection (Megatron's order): the output gradients of a token's k rows
are then one row, so that they, too, are quantised per token and gathered as codes. Kept for backward are a token's
codes, not those of its k rows, and the (S, 2F) projection that SwiGLU is computed from again.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ling.ops.backend import op
from ling.ops.fp8 import E4M3
from ling.ops.fp8_linear import Fp8Rule, Watch
from ling.ops.fp8_matmul import fp8_grouped_columns, fp8_grouped_weight_grad
from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.precision import at_least_float32
from ling.ops.row_order import order_rows, pad_order
from ling.ops.torch.autograd import run


@op(triton="ling.ops.triton.fp8_experts")
def fp8_mix_experts(
    x: Tensor, ids: Tensor, mix: Tensor, counts: Tensor, gate_up_proj: Tensor, down_proj: Tensor,
    rule: Fp8Rule, watch: Watch | None = None,
) -> Tensor:  # fmt: skip
    """Send each token through its k experts and add up their outputs times `mix`, as `ops.moe.mix_experts`.

    watch  sees every operand as it is quantised
    """
    y: Tensor = run(_Fp8MixExperts, x, ids, mix, counts, gate_up_proj, down_proj, rule, watch)
    return y


class _Fp8MixExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, ids: Tensor, mix: Tensor, counts: Tensor, gate_up_proj: Tensor, down_proj: Tensor,
        rule: Fp8Rule, watch: Watch | None,
    ) -> Tensor:  # fmt: skip
        order = pad_order(order_rows(ids, counts), ids, counts, rule.row_multiple)
        tokens = rule.rows(x, watch, "input")
        rows = tokens.rows(order.pair_of_slot // ids.shape[1])
        gate_up = rule.multiply_groups(rows, rule.weight(gate_up_proj, watch, "gate_up"), order.offsets, x.dtype)
        gate_up.masked_fill_((order.pair_of_slot == ids.numel())[:, None], 0)  # rows of nobody are undefined
        product = swiglu(gate_up) * _pick(mix.flatten(), order.pair_of_slot)[:, None]
        weighted = rule.rows(product, watch, "product")
        out = rule.multiply_groups(weighted, rule.weight(down_proj, watch, "down"), order.offsets, x.dtype)
        ctx.save_for_backward(tokens.codes, tokens.scale, gate_up, mix, gate_up_proj, down_proj, *order)
        ctx.rule, ctx.watch, ctx.dtype = rule, watch, x.dtype
        return _sum_pairs(out, order.slot_of_pair, mix.shape, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        codes, scale, gate_up, mix, gate_up_proj, down_proj, pair_of_slot, slot_of_pair, offsets = ctx.saved_tensors
        rule: Fp8Rule = ctx.rule
        token_of_slot = pair_of_slot // mix.shape[1]
        is_nobody = (pair_of_slot == mix.numel())[:, None]
        mix_of_slot = _pick(mix.flatten(), pair_of_slot)[:, None]
        product = swiglu(gate_up)
        dtokens = rule.rows(dy, ctx.watch, "output gradient", rule.gradient_kind)
        down = rule.weight(down_proj).transpose()
        dweighted = rule.multiply_groups(dtokens.rows(token_of_slot), down, offsets, ctx.dtype)
        dweighted = at_least_float32(dweighted).masked_fill(is_nobody, 0)
        ddown = dgate_up_proj = None
        if ctx.needs_input_grad[5]:
            weighted = rule.rows(product * mix_of_slot, None, "product")  # the codes of forward, made again
            ddown = _weight_grad(_pick(dy, token_of_slot), weighted, offsets, rule, down_proj.dtype)
        dmix = (dweighted * product).sum(1).index_select(0, slot_of_pair).view(mix.shape).to(mix.dtype)
        dgate_up = _swiglu_backward(dweighted * mix_of_slot, gate_up).to(ctx.dtype)
        if ctx.needs_input_grad[4]:
            rows = Fp8Tensor(codes, scale, "tile").rows(token_of_slot)
            dgate_up_proj = _weight_grad(dgate_up, rows, offsets, rule, gate_up_proj.dtype)
        gradients = rule.rows(dgate_up, ctx.watch, "hidden gradient", rule.gradient_kind)
        drows = rule.multiply_groups(gradients, rule.weight(gate_up_proj).transpose(), offsets, ctx.dtype)
        dx = _sum_pairs(drows, slot_of_pair, mix.shape, ctx.dtype)
        return dx, None, dmix, None, dgate_up_proj, ddown, None, None


def _weight_grad(dy: Tensor, rows: Fp8Tensor, offsets: Tensor, rule: Fp8Rule, dtype: torch.dtype) -> Tensor:
    if rule.fp8_weight_grad:
        return fp8_grouped_columns(rule.columns(dy, rule.gradient_kind), rule.columns(rows, E4M3), offsets, dtype)
    return fp8_grouped_weight_grad(dy, rows, offsets, dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up in float32: (S, 2F) -> (S, F)."""
    gate, up = at_least_float32(gate_up).chunk(2, dim=1)
    return torch.nn.functional.silu(gate) * up


def _swiglu_backward(dproduct: Tensor, gate_up: Tensor) -> Tensor:
    """Return the gradient of gate and up (S, 2F) in float32."""
    gate, up = at_least_float32(gate_up).chunk(2, dim=1)
    dgate = torch.ops.aten.silu_backward(dproduct * up, gate)
    return torch.cat([dgate, dproduct * torch.nn.functional.silu(gate)], dim=1)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """Gather along the first dim; one past the end gives zero."""
    padding = [0, 0] * (values.dim() - 1) + [0, 1]
    return torch.nn.functional.pad(values, padding).index_select(0, index)


def _sum_pairs(rows: Tensor, slot_of_pair: Tensor, pairs: torch.Size, dtype: torch.dtype) -> Tensor:
    """Add up the k rows of each token in float32: (S, H) -> (N, H)."""
    per_token = at_least_float32(rows.index_select(0, slot_of_pair)).view(*pairs, rows.shape[1])
    return per_token.sum(1).to(dtype)
