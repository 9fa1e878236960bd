"""What FP8 is compared with: products of blocks whose operands are rounded to bfloat16 and summed in float32."""

from typing import Any

import torch
from torch import Tensor

from ling.model import CausalLM
from ling.model.block import Block
from ling.model.linear import Linear
from ling.model.moe import SparseMoe
from ling.ops.linear import Weight, grouped_linear
from ling.ops.row_order import order_rows


class _RoundForward(torch.autograd.Function):
    """Rounds to bfloat16; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16).float()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return dy


class _RoundBackward(torch.autograd.Function):
    """Passes; the gradient is rounded to bfloat16, before both products that it is an operand of."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return dy.to(torch.bfloat16).float()


def rounded_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply rows by a weight: (..., K), (M, K) -> (..., M), float32."""
    return _RoundBackward.apply(torch.nn.functional.linear(_RoundForward.apply(x), _RoundForward.apply(weight)))


def rounded_mix(x: Tensor, ids: Tensor, mix: Tensor, counts: Tensor, gate_up: Weight, down: Weight) -> Tensor:
    """As `ops.fp8_experts`, the mixing weight before the down projection, with operands in bfloat16."""
    order, k = order_rows(ids, counts), ids.shape[1]
    rows = _RoundForward.apply(x)[order.pair_of_row // k]
    hidden = _RoundBackward.apply(grouped_linear(rows, _RoundForward.apply(gate_up), order.offsets))
    gate, up = hidden.chunk(2, dim=1)
    product = torch.nn.functional.silu(gate) * up * mix.flatten()[order.pair_of_row][:, None]
    out = grouped_linear(_RoundForward.apply(product), _RoundForward.apply(down), order.offsets)
    return _RoundBackward.apply(out)[order.row_of_pair].view(len(x), k, -1).sum(1)


def round_operands(model: CausalLM) -> None:
    """Let the products that FP8 would take have bfloat16 operands."""
    for block in model.model.layers:
        assert isinstance(block, Block), type(block)
        for part in (block.attention, block.mlp):
            for module in part.modules():
                if isinstance(module, Linear):
                    module.multiply = rounded_linear
                elif isinstance(module, SparseMoe):
                    module.mix = rounded_mix
