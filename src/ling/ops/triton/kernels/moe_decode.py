"""Routed experts for a few tokens: every program makes some outputs of one row and reads the weights they need, once.

Nothing is sorted or gathered, and each output is the same sum in the same order whatever else is in the batch. Sums are
float32, without tensor cores: weights are read for one row each, and reading them is what takes the time.
"""

import triton
import triton.language as tl

# Grid: (token, choice) pairs by BLOCK_F channels of the expert; then tokens by BLOCK_H channels of the output, choices
# in order. Roundings to the dtype of x are the published model's. Any number of rows; meant for at most a few dozen.


@triton.jit
def _dot_rows(weight, x, outputs, OUT: tl.constexpr, IN: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr):
    """Rows `outputs` of weight (OUT, IN) times x (IN,), in float32."""
    total = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    for first in range(0, IN, BLOCK_IN):
        columns = first + tl.arange(0, BLOCK_IN)
        held = columns < IN
        there = (outputs < OUT)[:, None] & held[None, :]
        w = tl.load(weight + outputs[:, None] * IN + columns[None, :], there, other=0.0)
        total += w.to(tl.float32) * tl.load(x + columns, held, other=0.0).to(tl.float32)[None, :]
    return tl.sum(total, 1)


@triton.jit
def expert_hidden(
    x, ids, gate_up, out,
    CHOICES: tl.constexpr, H: tl.constexpr, F: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """x (N, H), ids (N, k), gate_up (E, 2F, H) -> silu(gate) * up of each pair, out (N * k, F)."""
    pair = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    dtype = x.dtype.element_ty
    row = x + pair // CHOICES * H
    weight = gate_up + tl.load(ids + pair) * (2 * F * H)
    gate = _dot_rows(weight, row, channels, F, H, BLOCK_F, BLOCK_H).to(dtype).to(tl.float32)
    up = _dot_rows(weight + F * H, row, channels, F, H, BLOCK_F, BLOCK_H).to(dtype).to(tl.float32)
    silu = (gate * tl.sigmoid(gate)).to(dtype).to(tl.float32)
    tl.store(out + pair * F + channels, (silu * up).to(dtype), channels < F)


@triton.jit
def expert_outputs(
    hidden, ids, mix, down, out,
    CHOICES: tl.constexpr, H: tl.constexpr, F: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """hidden (N * k, F), mix (N, k), down (E, H, F) -> the weighted sum over a token's experts, out (N, H)."""
    token = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    total = tl.zeros((BLOCK_H,), tl.float32)
    for choice in range(CHOICES):
        pair = token * CHOICES + choice
        weight = down + tl.load(ids + pair) * (H * F)
        value = _dot_rows(weight, hidden + pair * F, channels, H, F, BLOCK_H, BLOCK_F)
        total += value.to(out.dtype.element_ty).to(tl.float32) * tl.load(mix + pair)
    tl.store(out + token * H + channels, total.to(out.dtype.element_ty), channels < H)
