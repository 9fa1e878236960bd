"""Cross-entropy of rows of logits, which become their own gradient where they lie."""

import triton
import triton.language as tl

# Grid: one program per row, which passes over it once for maximum and sum together (kept per lane, in float32) and, for
# the gradient, once more. Any vocabulary.


@triton.jit
def cross_entropy(
    logits, labels, per_token, correct,
    V, IGNORE: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """logits (n, V), labels (n,) -> per_token (n,) float32, correct (n,); logits := softmax - one-hot if GRADIENT."""
    row = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    at = logits + row.to(tl.int64) * V
    label = tl.load(labels + row)
    counted = label != IGNORE
    target = tl.load(at + label, counted, other=0.0).to(tl.float32)
    best = tl.full((BLOCK,), -3.0e38, tl.float32)  # finite, so that a lane without values has differences
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, V, BLOCK):
        z = tl.load(at + first + lanes, first + lanes < V, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(best, z)
        total = total * tl.exp(best - higher) + tl.exp(z - higher)
        best = higher
    largest = tl.max(best, 0)
    total = tl.sum(total * tl.exp(best - largest), 0)
    tl.store(per_token + row, tl.where(counted, largest - target + tl.log(total), 0.0))
    tl.store(correct + row, counted & (target >= largest))
    if GRADIENT:
        share = tl.where(counted, 1.0, 0.0)
        for first in range(0, V, BLOCK):
            columns = first + lanes
            z = tl.load(at + columns, columns < V, other=float("-inf")).to(tl.float32)
            d = tl.exp(z - largest) / total - tl.where(columns == label, 1.0, 0.0)
            tl.store(at + columns, (d * share).to(logits.dtype.element_ty), columns < V)
