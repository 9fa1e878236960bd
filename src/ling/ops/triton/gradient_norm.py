"""Sums of squares of many tensors: a launch per dtype instead of one or more per tensor."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from ling.ops.triton.available import refuse

_CHUNK = 2**16
_BLOCK = 4096


def why_not(tensors: Sequence[Tensor]) -> str | None:
    for tensor in tensors:
        if tensor.numel() and not tensor.is_contiguous():
            return "a tensor is not contiguous"
        if tensor.numel() and (reason := refuse(tensor, tensors[0])):
            return reason
    return None if any(tensor.numel() for tensor in tensors) else "there is nothing to do"


def forward(tensors: Sequence[Tensor]) -> Tensor:
    from ling.ops.triton.kernels import gradient_norm as kernels

    chunks: dict[torch.dtype, list[tuple[int, int]]] = defaultdict(list)
    for x in tensors:
        start, n, size = x.data_ptr(), x.numel(), x.element_size()
        chunks[x.dtype] += [(start + i * size, min(_CHUNK, n - i)) for i in range(0, n, _CHUNK)]
    sums = []
    for dtype, table in chunks.items():
        addresses, sizes = torch.tensor(table, dtype=torch.int64).t().contiguous().to(tensors[0].device)
        out = torch.empty(len(table), dtype=torch.float32, device=tensors[0].device)
        kernels.squares[(len(table),)](addresses, sizes, out, LIKE=_triton_dtype(dtype), BLOCK=_BLOCK)
        sums.append(out)
    return torch.cat(sums).sum()


def _triton_dtype(dtype: torch.dtype) -> object:
    import triton.language as tl

    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}[dtype]
