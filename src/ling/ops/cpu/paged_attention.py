"""Attention to a cache of float32 blocks, where they lie: nothing is gathered and nothing padded."""

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ling.ops.cpu import library as lib
from ling.ops.ragged import Ragged

if TYPE_CHECKING:
    from ling.ops.paged_attention import BlockStore, HeldBlocks

_LANES = 16
_MOST_HEADS = 32
_FEW_ROWS = 16
"""Up to so many new rows of a sequence, reading keys once for all heads wins; beyond, torch's blocked products do."""


class CPaged(ctypes.Structure):
    """`Paged` of kernels.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("keys", "values", "k", "v", "slots", "tables", "spans")),
        *((name, ctypes.c_int64) for name in ("B", "T", "P", "A", "K", "D")),
    ]


def why_not(q: Tensor, store: "BlockStore", rows: Ragged, held: "HeldBlocks") -> str | None:
    if held.spans is None:
        return "the mask is not said in spans"
    if q.shape[2] % _LANES:
        return f"heads have {q.shape[2]} channels, which is no multiple of {_LANES}"
    if q.shape[1] // store.keys.shape[2] > _MOST_HEADS:
        return f"more than {_MOST_HEADS} queries share a key"
    return lib.why_not_rows(q) or lib.why_not_values(store.keys) or lib.why_not_values(store.values)


def rather_not(q: Tensor, store: "BlockStore", rows: Ragged, held: "HeldBlocks") -> str | None:
    return None if rows.longest <= _FEW_ROWS else f"more than {_FEW_ROWS} new rows of a sequence"


def forward(q: Tensor, store: "BlockStore", rows: Ragged, held: "HeldBlocks") -> Tensor:
    return attend(q, store, rows, held, (None, None, None))


def attend(
    q: Tensor, store: "BlockStore", rows: Ragged, held: "HeldBlocks", new: tuple[int | None, int | None, int | None]
) -> Tensor:
    """Attend; `new` says where keys, values and slots lie that are written before."""
    q = q.contiguous()
    out = torch.empty_like(q)
    (N, A, D), (_, P, K, _), (B, T) = q.shape, store.keys.shape, held.tables.shape
    assert held.spans is not None
    assert rows.total == N, (N, rows.lengths)
    pointers = (held.tables.data_ptr(), held.spans.data_ptr())
    paged = CPaged(store.keys.data_ptr(), store.values.data_ptr(), *new, *pointers, B, T, P, A, K, D)
    lib.check(lib.opened().attend(q.data_ptr(), out.data_ptr(), N, torch.get_num_threads(), ctypes.byref(paged)))
    return out
