"""Attention to a cache of blocks through torch's fused kernel, over sequences padded to the longest."""

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ling.ops import paged_attention
from ling.ops.ragged import Ragged


def why_not(
    q: Tensor, store: "paged_attention.BlockStore", rows: Ragged, held: "paged_attention.HeldBlocks"
) -> str | None:
    return None


def forward(q: Tensor, store: "paged_attention.BlockStore", rows: Ragged, held: "paged_attention.HeldBlocks") -> Tensor:
    keys, values = paged_attention.gather(store, held, q.dtype)
    if held.num_visible:  # one row that sees all there is needs no mask
        keys, values = keys[:, : held.num_visible], values[:, : held.num_visible]
    out = scaled_dot_product_attention(
        rows.pad(q).transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=None if held.num_visible else held.visible[:, None],
        enable_gqa=True,
    )
    return rows.unpad(out.transpose(1, 2))
