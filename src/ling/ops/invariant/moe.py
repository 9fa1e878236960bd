"""Routed experts, each over a multiple of `ROWS` rows."""

import torch
from torch import Tensor

from ling.ops import moe
from ling.ops.invariant import ROWS
from ling.ops.linear import Weight
from ling.ops.precision import at_least_float32
from ling.ops.row_order import order_rows


def why_not(x: Tensor, ids: Tensor, mix: Tensor, counts: Tensor, gate_up_proj: Weight, down_proj: Weight) -> str | None:
    return None


def forward(x: Tensor, ids: Tensor, mix: Tensor, counts: Tensor, gate_up_proj: Weight, down_proj: Weight) -> Tensor:
    (N, H), k = x.shape, ids.shape[1]
    order = order_rows(ids, counts)
    room = (counts + ROWS - 1) // ROWS * ROWS  # (E,) rows of each expert, padding included
    shift = (room - counts).cumsum(0) - (room - counts)  # (E,) padding in front of each expert's rows
    expert_of_row = ids.flatten()[order.pair_of_row]
    place_of_row = torch.arange(N * k, device=x.device) + shift[expert_of_row]
    padded = x.new_zeros(int(room.sum()), H)
    padded[place_of_row] = x[order.pair_of_row // k]
    out = moe.apply_experts(padded, gate_up_proj, down_proj, room.cumsum(0).to(torch.int32))
    per_token = at_least_float32(out[place_of_row[order.row_of_pair]]).view(N, k, H)
    return (per_token * mix[..., None]).sum(1).to(x.dtype)
