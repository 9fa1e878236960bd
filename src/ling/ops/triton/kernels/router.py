"""Router: float32 scores of every expert; then the k best of the best groups, mixing weights and counts.

Two kernels, because the layout that tensor cores leave a product in is bad for choosing: each thread would hold 64
scores of two tokens (the code was fifty times as long), where a warp should hold one token.

Of equal scores the lowest index wins, as in the reference: a maximum is found by argmax, which takes the first, then
taken out. Tokens per expert are counted by whole-number atomics, whose order does not matter.
"""

import triton
import triton.language as tl

# Grid: one program per BLOCK_N tokens with all experts, a power of two, at most 512, in both. Sums in float32; products
# are float32's, or on tensor cores, where bfloat16 rows meet the three bfloat16 parts of a float32 weight.


@triton.jit
def router_logits(x, weight, logits, N, H: tl.constexpr, E: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr):
    """x (N, H), weight (E, H) -> logits (N, E) float32."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    experts = tl.arange(0, E)
    columns = tl.arange(0, BLOCK_H)
    total = tl.zeros((BLOCK_N, E), tl.float32)
    for first in range(0, H, BLOCK_H):
        h = first + columns
        a = tl.load(x + rows[:, None] * H + h[None, :], (rows < N)[:, None] & (h < H)[None, :], other=0.0)
        b = tl.load(weight + experts[None, :] * H + h[:, None], (h < H)[:, None], other=0.0)
        if x.dtype.element_ty == tl.float32:
            total = tl.dot(a, b.to(tl.float32), total, input_precision="ieee")
        elif weight.dtype.element_ty == tl.bfloat16:
            total = tl.dot(a, b, total)
        else:
            high = b.to(tl.bfloat16)
            rest = b - high.to(tl.float32)
            middle = rest.to(tl.bfloat16)
            low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
            total = tl.dot(a, low, total)
            total = tl.dot(a, middle, total)
            total = tl.dot(a, high, total)
    tl.store(logits + rows[:, None] * E + experts[None, :], total, (rows < N)[:, None])


@triton.jit
def _keep_best_groups(scores, GROUPS: tl.constexpr, KEPT: tl.constexpr, BLOCK_N: tl.constexpr, E: tl.constexpr):
    """Mask experts outside the best groups with -inf; a group's score is the sum of its two best."""
    SIZE: tl.constexpr = E // GROUPS
    grouped = tl.reshape(scores, (BLOCK_N, GROUPS, SIZE))
    best = tl.max(grouped, 2)
    first = tl.argmax(grouped, 2)
    others = tl.where(tl.arange(0, SIZE)[None, None, :] == first[:, :, None], float("-inf"), grouped)
    group_scores = best + tl.max(others, 2)
    groups = tl.arange(0, GROUPS)[None, :]
    kept = tl.zeros((BLOCK_N, GROUPS), tl.int1)
    for _ in range(KEPT):
        chosen = groups == tl.argmax(group_scores, 1)[:, None]
        kept = kept | chosen
        group_scores = tl.where(chosen, float("-inf"), group_scores)
    return tl.reshape(tl.where(kept[:, :, None], grouped, float("-inf")), (BLOCK_N, E))


@triton.jit
def choose(
    logits, expert_bias, ids, weights, counts, N, factor,
    E: tl.constexpr, CHOICES: tl.constexpr, GROUPS: tl.constexpr, KEPT: tl.constexpr,
    PLACES: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """logits (N, E), expert_bias (E,) or None -> ids, weights (N, k); counts (E,) are added to."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    experts = tl.arange(0, E)
    live = rows < N
    scores = tl.sigmoid(tl.load(logits + rows[:, None] * E + experts[None, :], live[:, None], other=0.0))
    biased = scores
    if expert_bias is not None:
        biased += tl.load(expert_bias + experts)[None, :]
    if GROUPS > 1:
        biased = _keep_best_groups(biased, GROUPS, KEPT, BLOCK_N, E)
    places = tl.arange(0, PLACES)[None, :]
    best_ids = tl.zeros((BLOCK_N, PLACES), tl.int32)
    best_scores = tl.zeros((BLOCK_N, PLACES), tl.float32)
    taken = tl.zeros((BLOCK_N, E), tl.int1)
    for choice in range(CHOICES):
        best = tl.argmax(biased, 1)
        chosen = experts[None, :] == best[:, None]
        score = tl.sum(tl.where(chosen, scores, 0.0), 1)
        taken = taken | chosen
        biased = tl.where(chosen, float("-inf"), biased)
        best_ids = tl.where(places == choice, best[:, None], best_ids)
        best_scores = tl.where(places == choice, score[:, None], best_scores)
    if CHOICES > 1:
        best_scores = best_scores / (tl.sum(best_scores, 1) + 1e-20)[:, None]
    at = rows[:, None] * CHOICES + places
    held = live[:, None] & (places < CHOICES)
    tl.store(ids + at, best_ids.to(tl.int64), held)
    tl.store(weights + at, best_scores * factor, held)
    tokens = tl.sum((taken & live[:, None]).to(tl.int32), 0)
    tl.atomic_add(counts + experts, tokens.to(tl.int64), tokens > 0)
