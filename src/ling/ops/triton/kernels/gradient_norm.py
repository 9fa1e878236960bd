"""Sums of squares of many tensors in one launch."""

import triton
import triton.language as tl

# Grid: one program per chunk, found in a table of addresses. Each leaves one float32 sum; they are added up elsewhere,
# always in the same order. Any number of tensors of one dtype; chunks of up to 2^31 elements.


@triton.jit
def squares(addresses, sizes, out, LIKE: tl.constexpr, BLOCK: tl.constexpr):
    """addresses, sizes (chunks,) int64: where each chunk begins, and its elements, of dtype LIKE -> out (chunks,)."""
    x = tl.load(addresses + tl.program_id(0)).to(tl.pointer_type(LIKE))
    size = tl.load(sizes + tl.program_id(0)).to(tl.int32)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, size, BLOCK):
        value = tl.load(x + first + lanes, first + lanes < size, other=0.0).to(tl.float32)
        total += value * value
    tl.store(out + tl.program_id(0), tl.sum(total, 0))
