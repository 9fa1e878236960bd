"""Decoding attention: few new rows per sequence, keys read from their blocks where they lie."""

import torch
from torch import Tensor

from ling.ops import paged_attention
from ling.ops.ragged import Ragged
from ling.ops.triton.available import next_power_of_two, refuse, refuse_fp8

_MOST_NEW = 16
"""New rows per sequence up to which each reads the keys by itself; more are torch's, whose rows share them."""
_CHUNK = 512


def why_not(
    q: Tensor, store: "paged_attention.BlockStore", rows: Ragged, held: "paged_attention.HeldBlocks"
) -> str | None:
    A, D = q.shape[1:]
    K = store.keys.shape[2]
    if held.spans is None:
        return "rows see something else than what is before them"
    if rows.longest > _MOST_NEW:
        return f"a sequence has {rows.longest} new rows"
    if D & (D - 1) or not 16 <= D <= 256 or A // K > 64:
        return f"heads of {D} channels, or {A // K} for one of keys, do not fit its tile"
    if torch.is_grad_enabled() and q.requires_grad:
        return "it has no backward"
    if store.keys.dtype not in (q.dtype, torch.float8_e4m3fn):
        return f"the cache holds {store.keys.dtype}"
    check = refuse if store.key_scale is None else refuse_fp8
    return check(q, store.keys, held.tables, held.spans)


def forward(q: Tensor, store: "paged_attention.BlockStore", rows: Ragged, held: "paged_attention.HeldBlocks") -> Tensor:
    from ling.ops.triton.kernels import paged_attention as kernels

    assert held.spans is not None
    (N, A, D), (_, P, K, _) = q.shape, store.keys.shape
    T = held.tables.shape[1]
    parts = -(-T * P // _CHUNK)
    out = torch.empty(N, A, parts, D, dtype=torch.float32, device=q.device)
    best, total = torch.empty(2, N, A, parts, dtype=torch.float32, device=q.device)
    kernels.attend_to_part[(N, K, parts)](
        q.contiguous(), store.keys, store.values, store.key_scale, store.value_scale, held.tables.contiguous(),
        held.spans.contiguous(), rows.sequence_of_row, rows.index_in_sequence, out, best, total, T,
        A=A, K=K, D=D, P=P, PARTS=parts, GROUP=max(16, next_power_of_two(A // K)), CHUNK=_CHUNK, BLOCK=64,
        SCALE=D**-0.5, num_warps=4, num_stages=3,
    )  # fmt: skip
    joined = torch.empty_like(q, memory_format=torch.contiguous_format)
    kernels.join_parts[(N, A)](out, best, total, joined, A=A, D=D, PARTS=parts, num_warps=1)
    return joined
