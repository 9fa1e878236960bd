"""Attention through torch's fused kernel, over sequences padded to the longest."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ling.ops import attention
from ling.ops.ragged import Ragged


def why_not(q: Tensor, k: Tensor, v: Tensor, q_rows: Ragged, k_rows: Ragged) -> str | None:
    return None


def forward(q: Tensor, k: Tensor, v: Tensor, q_rows: Ragged, k_rows: Ragged) -> Tensor:
    if q_rows.lengths != k_rows.lengths:
        return _attend_to_more(q, k, v, q_rows, k_rows)
    if len(q_rows.runs) == 1:
        return _attend_to_itself(q, k, v, q_rows)
    sizes = [run.total for run in q_rows.runs]
    parts = zip(q.split(sizes), k.split(sizes), v.split(sizes), q_rows.runs)
    return torch.cat([_attend_to_itself(*part) for part in parts])


def _attend_to_itself(q: Tensor, k: Tensor, v: Tensor, rows: Ragged) -> Tensor:
    # Padding lies behind each sequence, where a causal mask hides it from every row that counts.
    q, k, v = (rows.pad(x).transpose(1, 2) for x in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return rows.unpad(out.transpose(1, 2))


def _attend_to_more(q: Tensor, k: Tensor, v: Tensor, q_rows: Ragged, k_rows: Ragged) -> Tensor:
    q, k, v = (rows.pad(x).transpose(1, 2) for x, rows in ((q, q_rows), (k, k_rows), (v, k_rows)))
    new, held = (torch.tensor(rows.lengths, device=q.device) for rows in (q_rows, k_rows))
    mask = attention.visible_keys(new, held, q_rows.longest, k_rows.longest)[:, None]
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return q_rows.unpad(out.transpose(1, 2))
