"""Writing new keys and values and attending in one call."""

from typing import TYPE_CHECKING

from torch import Tensor

from ling.ops.cpu import library as lib
from ling.ops.cpu import paged_attention
from ling.ops.ragged import Ragged

if TYPE_CHECKING:
    from ling.ops.paged_attention import BlockStore, HeldBlocks


def why_not(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    flat: "BlockStore",
    slots: Tensor,
    store: "BlockStore",
    rows: Ragged,
    held: "HeldBlocks",
) -> str | None:
    return paged_attention.why_not(q, store, rows, held) or lib.why_not_values(k) or lib.why_not_values(v)


def rather_not(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    flat: "BlockStore",
    slots: Tensor,
    store: "BlockStore",
    rows: Ragged,
    held: "HeldBlocks",
) -> str | None:
    return paged_attention.rather_not_rows(rows.longest)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    flat: "BlockStore",
    slots: Tensor,
    store: "BlockStore",
    rows: Ragged,
    held: "HeldBlocks",
) -> Tensor:
    N, K, D = q.shape[0], *store.keys.shape[2:]
    assert k.shape == v.shape == (N, K, D), (k.shape, v.shape, q.shape, store.keys.shape)
    assert slots.shape[0] == N, (slots.shape, q.shape)
    return paged_attention.attend(q, store, rows, held, (k.data_ptr(), v.data_ptr(), slots.data_ptr()))
