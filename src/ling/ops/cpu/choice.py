"""Choices of tokens; noise is computed only where it can still decide."""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from ling.ops.cpu import library as lib


def why_not(logits: Tensor, temperatures: Sequence[float], keys: Sequence[int]) -> str | None:
    return lib.why_not_rows(logits)


def forward(logits: Tensor, temperatures: Sequence[float], keys: Sequence[int]) -> list[int]:
    N, V = logits.shape
    assert len(temperatures) == len(keys) == N, (len(temperatures), len(keys), N)
    logits, warm, own, chosen = (
        logits.contiguous(),
        array("f", temperatures),
        array("Q", keys),
        array("q", bytes(8 * N)),
    )
    pointers = (values.buffer_info()[0] for values in (warm, own, chosen))
    lib.check(lib.opened().choose(logits.data_ptr(), N, torch.get_num_threads(), V, *pointers))
    return chosen.tolist()
