"""Bytes that the two halves of a block keep for backward, and need while they run.

Each term is a tensor of `ling.model` and `ling.ops`, read off the code and held to it by tests against the real
model. `fused` is what our hand-written float32 backward passes save; otherwise it is what autograd saves of
the plain compositions, which low precision runs (their rounding order is the published one). Experts in FP8 are those
of fused kernels, read off `ling.ops.triton.fp8_experts` and not measured; the emulation for CPUs takes several times
as much. Other FP8 layers count as in bfloat16, though they keep codes of their inputs.

N tokens of one microbatch on one rank, R = N k routed rows, b bytes of an activation; the router is float32.
"""

from typing import NamedTuple

from ling.config import ModelConfig
from ling.scaling.layout import Layout
from ling.scaling.precision import Precision
from ling.scaling.stored import Kind

INDEX = 8
"""Bytes of an int64, which positions, token ids and row orders are."""


class Workload(NamedTuple):
    """What one rank runs at once."""

    sequence_length: int
    micro_batch: int = 1
    """Sequences of one forward pass."""
    microbatches: int = 1
    """Forward passes per optimizer step."""
    imbalance: float = 1.0
    """Routed rows of the busiest rank over the mean; only experts on several ranks can differ."""
    z_loss: bool = True


class HalfBlock(NamedTuple):
    """Attention or feed-forward, each with the norm before it."""

    saved: float
    """Kept from forward to backward."""
    forward: float
    """Beside it at the largest moment of forward."""
    backward: float
    """Beside it at the largest moment of backward, without the gradients of its weights."""
    dispatch: float = 0
    """Buffers that carry rows between expert ranks, each way."""
    backward_first: float = 0
    """As `backward`, while no gradient of a weight has been made."""
    routed: float = 0
    """Of `saved`, what the routed experts keep."""


class BlockBytes(NamedTuple):
    attention: HalfBlock
    feed_forward: HalfBlock
    outputs: float
    """What the router hands out (logits, choices, weights): kept to the end of the step in any case."""
    logits: float
    """Gradient of the router's logits through the z-loss: there from the start of backward."""
    around: float
    """What an MTP block keeps before and behind the block inside it."""
    kept: float
    """What stays from forward to backward under the layout's recompute, `outputs` aside."""

    @property
    def saved(self) -> float:
        """What backward needs."""
        return self.attention.saved + self.feed_forward.saved + self.around


def tokens_per_rank(work: Workload, layout: Layout) -> int:
    """N: between products of weights in pieces each tensor rank has tokens of its own."""
    return work.micro_batch * work.sequence_length // (layout.context * layout.tensor)


def block_bytes(model: ModelConfig, kind: Kind, work: Workload, layout: Layout, precision: Precision) -> BlockBytes:
    """Return the bytes of one block of `kind` on one rank."""
    N, H, b = tokens_per_rank(work, layout), model.hidden_size, precision.compute_bytes
    sparse = kind != "dense"
    stream, norm = N * H * b, N * norm_bytes(model, precision)
    attention = _attention(model, N, layout, precision)
    feed_forward = _sparse(model, N, work, layout, precision) if sparse else _dense(model, N, layout, precision)
    # An MTP block joins embedding and hidden states, each normed; a norm follows, whose output the head reads.
    around = 3 * norm + (2 if precision.fused else 3) * stream if kind == "mtp" else 0
    kept = {
        "none": attention.saved + feed_forward.saved + around,
        "selective": attention.saved
        + around
        + (stream if precision.recomputes_layer else feed_forward.saved - feed_forward.routed),
        "full": stream * (2 if kind == "mtp" else 1),
    }
    return BlockBytes(
        attention=attention,
        feed_forward=feed_forward,
        outputs=N * (4 * model.num_experts + (INDEX + 4) * model.num_experts_per_tok) if sparse else 0,
        logits=4 * N * model.num_experts if sparse and work.z_loss else 0,
        around=around,
        kept=kept[layout.recompute],
    )


def norm_bytes(model: ModelConfig, precision: Precision) -> int:
    """Return what a norm of hidden states saves per token: its input, or what low precision makes of it."""
    H, b = model.hidden_size, precision.compute_bytes
    return b * H + 4 if precision.fused else 4 * H + 4 + b * H


def _attention(model: ModelConfig, N: int, layout: Layout, precision: Precision) -> HalfBlock:
    """N tokens on this rank; those of its tensor ranks, G, meet its heads."""
    H, D, b, G = model.hidden_size, model.head_dim, precision.compute_bytes, N * layout.tensor
    A, K = model.num_attention_heads // layout.tensor, model.num_key_value_heads // layout.tensor
    qkv, heads, log_sums = (A + 2 * K) * D, (A + K) * D, 4 * A
    normed = b * H  # input of the projection
    if precision.fused:
        prologue = b * (qkv + heads + K * D) + 4 * (A + K)  # before; queries and keys after; values; inverse roots
    else:
        per_head = (4 + b + b) * D + 4 if model.use_qk_norm else b * D  # the same, and after the rotation
        prologue = b * qkv + (A + K) * per_head
    saved = normed + prologue + b * A * D + log_sums
    forward = b * (A * D + H)
    gathered = 2 * b * K * D * layout.context if layout.context > 1 else 0  # keys and values of all ranks
    moved = b * qkv if layout.tensor > 1 else 0  # heads change places
    backward = b * (2 * H + 2 * qkv + 3 * heads) + 2 * gathered
    norm = N * norm_bytes(model, precision)
    return HalfBlock(norm + G * saved, G * (forward + gathered + moved), G * backward)


def _dense(model: ModelConfig, N: int, layout: Layout, precision: Precision) -> HalfBlock:
    return _with_norm(model, N, precision, _swiglu(model, model.intermediate_size, N, layout, precision))


def _swiglu(model: ModelConfig, width: int, N: int, layout: Layout, precision: Precision) -> HalfBlock:
    b, G, T = precision.compute_bytes, N * layout.tensor, layout.tensor
    # Gate and up; without fusion also the gate's silu and the product, which backward frees as it goes.
    saved, backward = (2, 4) if precision.fused and T == 1 else (4, 2)
    seen = model.hidden_size if T > 1 else 0  # the tokens of all tensor ranks, and partial sums for them
    per_token = b * width // T
    return HalfBlock(
        G * (saved * per_token + b * seen), G * (2 * per_token + b * seen), G * (backward * per_token + b * seen)
    )


def _with_norm(model: ModelConfig, N: int, precision: Precision, inner: HalfBlock) -> HalfBlock:
    """Add the norm before a feed-forward, its output, and the two streams that pass by."""
    H, b = model.hidden_size, precision.compute_bytes
    return HalfBlock(
        inner.saved + N * (norm_bytes(model, precision) + b * H),
        inner.forward + N * b * H,
        inner.backward + N * b * 2 * H,
        inner.dispatch,
        inner.backward_first + N * b * 2 * H,
        inner.routed,
    )


def _sparse(model: ModelConfig, N: int, work: Workload, layout: Layout, precision: Precision) -> HalfBlock:
    H, F, E, k, b = (
        model.hidden_size, model.moe_intermediate_size, model.num_experts, model.num_experts_per_tok,
        precision.compute_bytes,
    )  # fmt: skip
    code = 1 + 4 / 128  # bytes of a value in FP8 with its share of a scale
    R = N * k * (work.imbalance if layout.expert > 1 else 1.0)
    # Scores, chosen scores and their sum; logits, ids and weights are the block's outputs.
    router = N * (4 * E + 4 * k + 4 + (4 if work.z_loss else 0))
    if not precision.fused:
        router += 4 * N * H  # the router's input in float32
    if layout.expert > 1 and precision.fp8_gemm and precision.sharded == "all":
        # As below, but each of a token's rows is one of its own here, and where rows came from and what is there.
        S = R + (precision.row_multiple - 1) * E / layout.expert
        rows = R * (code * H + 4 + 2 * INDEX) + S * b * 2 * F + INDEX * (S + R)
        rows += N * rank_visits(model, layout.expert) * (INDEX + k)
        forward = S * (code * (H + F) + b * H) + R * 2 * b * H
        first = S * (code * H + b * F) + R * (b + code) * H
        backward = S * (code * (3 * F + H) + b * (2 * F + H)) + R * b * H
    elif layout.expert > 1:
        # Gathered rows, gate and up, silu, product, output; weight, both orders; where rows came from, what is there.
        rows = R * (b * (2 * H + 4 * F) + 4 + 2 * INDEX) + N * rank_visits(model, layout.expert) * (INDEX + k)
        forward = R * (b * 2 * H + 4 * H)
        backward, first = R * (b * (2 * H + 4 * F) + 4 * H), R * 8 * H
    elif precision.fp8_gemm and precision.sharded == "all":
        S = R + (precision.row_multiple - 1) * E  # for the worst counts
        rows = N * code * H + S * b * 2 * F + INDEX * (S + R)  # codes of tokens, gate and up, both orders
        forward = S * (code * (H + F) + b * H) + N * b * H  # gathered rows, product, output
        first = S * (code * H + b * F) + N * code * H  # output gradients as codes, gradient of the product
        backward = S * (code * (3 * F + H) + b * (2 * F + H))  # product, gradients of gate and up, rows, of rows
    elif precision.fused:
        rows = R * (b * (H + 2 * F) + 4 + 2 * INDEX)  # gathered rows, gate and up, weight, both orders
        forward = R * b * (2 * F + H) + N * b * H
        backward, first = R * b * (2 * H + 5 * F) + N * b * H, 0.0
    else:
        rows = R * (b * (H + 4 * F) + 4 * H + 2 * INDEX)  # ... silu, product; outputs per pair in float32
        forward = R * b * 2 * H
        first = R * 8 * H + 2 * N * 4 * H  # gradients of those outputs and, for a moment, of their weights
        backward = max(0.0, R * (b * (2 * H + 4 * F) - 4 * H))  # by then the outputs themselves are gone
    shared = _swiglu(model, model.shared_expert_dim, N, layout, precision)
    # Backward runs the shared expert first, so what that saved is gone when the experts are at their fullest.
    backward = max(shared.backward, backward - shared.saved)
    dispatch = _dispatch(model, N, R / (N * k), layout, b)
    inner = HalfBlock(router + rows + shared.saved, forward, backward, dispatch, max(0.0, first - shared.saved), rows)
    return _with_norm(model, N, precision, inner)


def _dispatch(model: ModelConfig, N: int, imbalance: float, layout: Layout, b: int) -> float:
    """A token travels once to each rank that holds a group it chose: sent and received, there and back."""
    if layout.expert == 1:
        return 0
    return 2 * N * rank_visits(model, layout.expert) * model.hidden_size * b * (1 + imbalance) / 2


def rank_visits(model: ModelConfig, expert: int) -> int:
    """Return the most ranks that a token can be sent to: as many as it may choose groups from, or experts."""
    per_token = min(model.num_experts_per_tok, expert)
    if model.n_group and expert <= model.n_group and model.n_group % expert == 0:
        return min(per_token, model.topk_group)
    return per_token
