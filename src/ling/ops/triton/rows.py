"""Between tokens and rows sorted by expert: launches that the twins of expert layers share."""

import torch
from torch import Tensor

from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.row_order import PaddedOrder
from ling.ops.triton.available import next_power_of_two

MOST_EXPERTS = 4096
_PAIRS = 128
_BLOCK = 2048


def order_pairs(ids: Tensor, counts: Tensor, multiple: int) -> PaddedOrder:
    """Return what `pad_order(order_rows(ids, counts), ...)` does, without a sort.

    ids (N, k), counts (E,) int64; multiple 1 leaves no room between experts
    """
    from ling.ops.triton.kernels import rows as kernels

    R, E, device = ids.numel(), len(counts), ids.device
    blocks = -(-R // _PAIRS)
    ids = ids.contiguous()
    of_block = torch.empty(blocks, E, dtype=torch.int32, device=device)
    kernels.count_pairs[(blocks,)](ids, of_block, R, E=E, EXPERTS=next_power_of_two(E), BLOCK=_PAIRS)
    room = -(-counts // multiple) * multiple
    ends = room.cumsum(0)
    first = of_block.cumsum(0) - of_block + (ends - room)  # (blocks, E) int64
    S = -(-(R + min(E, R) * (multiple - 1)) // multiple) * multiple
    pair_of_slot = torch.full((S,), R, dtype=torch.int64, device=device)
    slot_of_pair = torch.empty(R, dtype=torch.int64, device=device)
    kernels.place_pairs[(blocks,)](ids, first, pair_of_slot, slot_of_pair, R, E=E, BLOCK=_PAIRS)
    return PaddedOrder(pair_of_slot, slot_of_pair, ends.to(torch.int32))


def gather(x: Tensor, order: PaddedOrder, k: int) -> Tensor:
    """Return each slot's token, zeros where there is none: (N, H) -> (S, H)."""
    out = x.new_empty(len(order.pair_of_slot), x.shape[1])
    _gather(x.contiguous(), None, order, k, out, None)
    return out


def gather_fp8(x: Fp8Tensor, order: PaddedOrder, k: int) -> Fp8Tensor:
    """Return each slot's token, codes and scales."""
    S, H = len(order.pair_of_slot), x.shape[1]
    codes = torch.empty(S, H, dtype=x.codes.dtype, device=x.codes.device)
    scale = x.scale.new_empty(S, x.scale.shape[1])
    _gather(x.codes.contiguous().view(torch.uint8), x.scale.contiguous(), order, k, codes.view(torch.uint8), scale)
    return Fp8Tensor(codes, scale, "tile")


def combine(rows: Tensor, order: PaddedOrder, k: int, mix: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Add up each token's k rows, times `mix` (N, k) if there is one, in float32: (S, H) -> (N, H)."""
    from ling.ops.triton.kernels import rows as kernels

    N, H = len(order.slot_of_pair) // k, rows.shape[1]
    out = torch.empty(N, H, dtype=dtype, device=rows.device)
    block = min(_BLOCK, next_power_of_two(H))
    weights = None if mix is None else mix.contiguous()
    kernels.combine_rows[(N, -(-H // block))](
        rows.contiguous(), order.slot_of_pair, weights, out, CHOICES=k, H=H, BLOCK=block
    )
    return out


def mix_of_slot(mix: Tensor, order: PaddedOrder) -> Tensor:
    """Return each slot's weight, 0 where there is no pair: (N, k) -> (S,)."""
    return torch.nn.functional.pad(mix.flatten(), (0, 1)).index_select(0, order.pair_of_slot)


def _gather(
    x: Tensor, x_scale: Tensor | None, order: PaddedOrder, k: int, out: Tensor, out_scale: Tensor | None
) -> None:
    from ling.ops.triton.kernels import rows as kernels

    S, H = out.shape
    tiles = 0 if x_scale is None else x_scale.shape[1]
    block = min(_BLOCK, next_power_of_two(H))
    rows = max(1, 2 * _BLOCK // block)
    kernels.gather_rows[(-(-S // rows), -(-H // block))](
        x, x_scale, order.pair_of_slot, out, out_scale, S, len(order.slot_of_pair),
        CHOICES=k, H=H, ROWS=rows, BLOCK=block, TILES=tiles, BLOCK_TILES=next_power_of_two(tiles),
    )  # fmt: skip
