"""Attention to a cache through torch's fused kernel: the cache is padded already."""

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ling.ops.ragged import Ragged


def why_not(q: Tensor, keys: Tensor, values: Tensor, q_rows: Ragged, visible: Tensor) -> str | None:
    return None


def forward(q: Tensor, keys: Tensor, values: Tensor, q_rows: Ragged, visible: Tensor) -> Tensor:
    padded = q_rows.pad(q).transpose(1, 2)
    out = scaled_dot_product_attention(
        padded, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=visible[:, None], enable_gqa=True
    )
    return q_rows.unpad(out.transpose(1, 2))
