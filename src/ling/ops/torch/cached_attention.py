"""Attention to a cache through torch's fused kernel: the cache is padded already."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ling.ops.ragged import Ragged


def why_not(q: Tensor, keys: Tensor, values: Tensor, q_rows: Ragged, lengths: Tensor) -> str | None:
    return None


def forward(q: Tensor, keys: Tensor, values: Tensor, q_rows: Ragged, lengths: Tensor) -> Tensor:
    new = torch.tensor(q_rows.lengths, device=q.device)
    mask = visible_keys(new, lengths, q_rows.longest, keys.shape[1])
    padded = q_rows.pad(q).transpose(1, 2)
    out = scaled_dot_product_attention(
        padded, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask, enable_gqa=True
    )
    return q_rows.unpad(out.transpose(1, 2))


def visible_keys(new: Tensor, held: Tensor, longest_new: int, longest_held: int) -> Tensor:
    """Return (B, 1, longest_new, longest_held) bool: query i of `new` is row held - new + i and sees rows up to it."""
    i = torch.arange(longest_new, device=new.device)
    j = torch.arange(longest_held, device=new.device)
    last = (held - new)[:, None] + i  # (B, longest_new)
    return (j <= last[..., None])[:, None]
