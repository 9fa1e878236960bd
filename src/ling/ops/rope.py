"""Rotary position embedding: frequencies (default, linear, YaRN), the cos/sin table, the rotation.

Rotate-half pairing on the first r channels of each head; the others pass through. YaRN follows its `factor` as
written and boosts only rotated channels, through cos and sin (spec: model.md 4.2 and 5; arXiv 2309.00071).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ling.config import ModelConfig, RopeScaling


class Rope(NamedTuple):
    """cos and sin for a row of tokens: (N, r / 2) each, in the activations' dtype."""

    cos: Tensor
    sin: Tensor


def rope_table(positions: Tensor, model: ModelConfig, dtype: torch.dtype) -> Rope:
    """Tabulate the rotation of each position.

    positions  (N,)  integer
    return     cos and sin (N, r / 2); angles are float32, rounded once to `dtype`
    """
    inv_freq, scale = rope_frequencies(model, positions.device)
    angles = positions.to(torch.float32)[:, None] * inv_freq
    return Rope((angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype))


class RopeTable:
    """The rotation of every position below `length`, made once: decoding looks it up instead of computing it.

    dtype  of cos and sin
    """

    def __init__(self, model: ModelConfig, length: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rope = rope_table(torch.arange(length, device=device), model, dtype)

    def __call__(self, positions: Tensor, model: ModelConfig, dtype: torch.dtype) -> Rope:
        """Return what `rope_table` does."""
        cos, sin = self.rope
        assert cos.dtype == dtype, (cos.dtype, dtype)
        return Rope(cos.index_select(0, positions), sin.index_select(0, positions))


def rope_frequencies(model: ModelConfig, device: torch.device) -> tuple[Tensor, float]:
    """Return the angle per position of each channel pair, (r / 2,) float32, and the factor of cos and sin."""
    r = model.rotated_dim
    exponents = torch.arange(0, r, 2, dtype=torch.int64, device=device).to(torch.float32) / r
    inv_freq = 1.0 / model.rope_theta**exponents
    scaling = model.rope_scaling
    if scaling is None:
        return inv_freq, 1.0
    if scaling.type == "linear":
        return inv_freq / scaling.factor, 1.0
    keep = _yarn_keep(scaling, r, model.rope_theta, device)
    return inv_freq / scaling.factor * (1 - keep) + inv_freq * keep, yarn_attention_factor(scaling)


def apply_rope(x: Tensor, rope: Rope) -> Tensor:
    """Rotate the first r channels of each head.

    x       (N, heads, D)
    return  (N, heads, D)
    """
    cos, sin = rope.cos[:, None], rope.sin[:, None]  # (N, 1, r / 2)
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def yarn_attention_factor(scaling: RopeScaling) -> float:
    """Return what cos and sin are multiplied by."""

    def boost(mscale: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * mscale * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return boost(scaling.mscale) / boost(scaling.mscale_all_dim)
    return boost(1.0)


def _yarn_keep(scaling: RopeScaling, r: int, theta: float, device: torch.device) -> Tensor:
    """Return per channel pair the share that keeps its frequency: 1 for fast pairs, 0 for slow ones."""

    def pair_with(rotations: float) -> float:
        """Return the (fractional) pair that turns `rotations` times over the trained context."""
        context = scaling.original_max_position_embeddings
        assert context is not None
        return r * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, r - 1)
    if low == high:
        high += 0.001  # a ramp of width 0 would divide by zero
    pairs = torch.arange(r // 2, dtype=torch.float32, device=device)
    return 1 - ((pairs - low) / (high - low)).clamp(0, 1)
