"""Attention to the blocks of a cache, where they lie: nothing is gathered and nothing padded."""

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ling.ops.cpu import library as lib
from ling.ops.ragged import Ragged

if TYPE_CHECKING:
    from ling.ops.paged_attention import BlockStore, HeldBlocks

_LANES = 16
_FEW_ROWS = 16
"""Without vector instructions: up to so many new rows of a sequence, reading keys once for all heads wins."""
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float8_e4m3fn: 3}
"""What a cache may hold, as kernels.h counts it."""


class CPaged(ctypes.Structure):
    """`Paged` of kernels.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("keys", "values", "k", "v", "slots", "tables", "spans")),
        *((name, ctypes.c_int64) for name in ("B", "T", "P", "A", "K", "D", "kind")),
        *((name, ctypes.c_void_p) for name in ("key_scales", "value_scales")),
    ]


def why_not(q: Tensor, store: "BlockStore", rows: Ragged, held: "HeldBlocks") -> str | None:
    if held.spans is None:
        return "the mask is not said in spans"
    return lib.why_not_rows(q) or why_not_store(q.shape[1], q.shape[2], store)


def why_not_store(A: int, D: int, store: "BlockStore") -> str | None:
    """Why A query heads of D channels cannot attend to this store, or None."""
    if D % _LANES:
        return f"heads have {D} channels, which is no multiple of {_LANES}"
    if store.keys.dtype not in KINDS or store.values.dtype != store.keys.dtype:
        return f"the cache holds {store.keys.dtype} and {store.values.dtype}"
    parts = [part for part in store if part is not None]
    if len(parts) != (4 if store.keys.dtype == torch.float8_e4m3fn else 2):
        return "codes have scales, and nothing else has"
    if not all(part.is_cpu and part.is_contiguous() for part in parts):
        return f"the cache is on {store.keys.device}, or not contiguous"
    return "gradients are wanted" if torch.is_grad_enabled() and any(part.requires_grad for part in parts) else None


def rather_not(q: Tensor, store: "BlockStore", rows: Ragged, held: "HeldBlocks") -> str | None:
    return rather_not_rows(rows.longest)


def rather_not_rows(longest: int) -> str | None:
    """Why torch is faster where a sequence has so many new rows, or None."""
    if longest <= _FEW_ROWS or lib.opened().level != "plain":
        return None
    return f"more than {_FEW_ROWS} new rows of a sequence, and no vector instructions that the kernels know"


def forward(q: Tensor, store: "BlockStore", rows: Ragged, held: "HeldBlocks") -> Tensor:
    return attend(q, store, rows, held, (None, None, None))


def attend(
    q: Tensor, store: "BlockStore", rows: Ragged, held: "HeldBlocks", new: tuple[int | None, int | None, int | None]
) -> Tensor:
    """Attend; `new` says where keys, values and slots lie that are written before."""
    q = q.contiguous()
    out = torch.empty_like(q)
    (N, A, _), (B, T) = q.shape, held.tables.shape
    assert held.spans is not None
    assert rows.total == N, (N, rows.lengths)
    paged = describe_store(store, A)
    paged.k, paged.v, paged.slots = new
    paged.tables, paged.spans, paged.B, paged.T = held.tables.data_ptr(), held.spans.data_ptr(), B, T
    lib.check(lib.opened().attend(q.data_ptr(), out.data_ptr(), N, torch.get_num_threads(), ctypes.byref(paged)))
    return out


def describe_store(store: "BlockStore", A: int) -> CPaged:
    """Describe a store that A query heads see; what a step brings is left empty."""
    _, P, K, D = store.keys.shape
    return CPaged(
        keys=store.keys.data_ptr(), values=store.values.data_ptr(), P=P, A=A, K=K, D=D, kind=KINDS[store.keys.dtype],
        key_scales=lib.address(store.key_scale), value_scales=lib.address(store.value_scale),
    )  # fmt: skip
