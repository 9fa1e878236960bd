"""Attention as two products and a softmax over a multiple of `KEYS` keys, for a multiple of `ROWS` rows per head."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from ling.ops import paged_attention
from ling.ops.invariant import KEYS, ROWS, round_up
from ling.ops.precision import at_least_float32
from ling.ops.ragged import Ragged


def why_not(
    q: Tensor, store: "paged_attention.BlockStore", rows: Ragged, held: "paged_attention.HeldBlocks"
) -> str | None:
    return None


def forward(q: Tensor, store: "paged_attention.BlockStore", rows: Ragged, held: "paged_attention.HeldBlocks") -> Tensor:
    keys, values = paged_attention.gather(store, held, q.dtype)
    (_, M, K, D), n = keys.shape, rows.longest
    n_padded, M_padded = round_up(n, ROWS), round_up(M, KEYS)
    keys, values = (pad(x, (0, 0, 0, 0, 0, M_padded - M)).transpose(1, 2) for x in (keys, values))  # (B, K, M, D)
    q = pad(rows.pad(q), (0, 0, 0, 0, 0, n_padded - n))  # (B, n, A, D)
    grouped = q.unflatten(2, (K, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # (B, K, A / K * n, D)
    hidden = pad(~held.visible, (0, M_padded - M, 0, n_padded - n), value=True)
    hidden[:, n:, 0] = False  # rows that pad see something, so that nothing becomes NaN
    scores = at_least_float32(grouped @ keys.transpose(2, 3) * D**-0.5).unflatten(2, (-1, n_padded))
    probabilities = scores.masked_fill(hidden[:, None, None], -torch.inf).softmax(-1).to(q.dtype)
    out = (probabilities.flatten(2, 3) @ values).unflatten(2, (-1, n_padded))  # (B, K, A / K, n, D)
    return rows.unpad(out[:, :, :, :n].permute(0, 3, 1, 2, 4).flatten(2, 3))
