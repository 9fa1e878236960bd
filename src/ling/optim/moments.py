"""Adam's moments and Muon's momentum in one or two bytes, a scale per 256 neighbours.

    fp8       E4M3, power-of-two scales. Means are rounded stochastically. Of squares the root is kept, which halves the
              range they span, rounded so that squares are right on average; what is not zero never becomes zero, so no
              update is divided by nothing but epsilon.
    dynamic8  the published map of 256 values, rounded to nearest; squares, too, only become zero if they are (unlike
              the published optimizer's, whose updates of rarely used rows then grow to mean over epsilon)
    bfloat16  rounded stochastically, without scales

A decaying average must not be rounded to nearest in 3 bits: at beta2 0.95 a root that shrinks by 2.5 % a step lies
within half of a code's 6 to 12 %, and would never move.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ling.distributed.parts import local, shared_as
from ling.ops.fp8 import BLOCK, E4M3, E4M3_MAX, dequantize_e4m3_tile, round_up_to_power_of_two
from ling.ops.rounding import round_squares_to_e4m3, round_to_bfloat16, round_to_e4m3
from ling.optim.dynamic_map import tables

BLOCK_SIZE = 256
LEAST_ELEMENTS = 4096
"""Smaller parameters, and vectors, keep float32 moments."""
SCALE = "_scale"
"""Ends the name of what belongs to codes."""
_LEAST_SCALE = {"mean": 2.0**-110, "square": 2.0**-54}
"""So that the smallest code, and its square, are normal numbers."""

Kind = Literal["mean", "square"]
Noise = Tensor | int


@dataclass(frozen=True, slots=True)
class MomentFormat:
    """How a run of values becomes codes, and codes values.

    encode  (values (n,) float32, noise (n,) or one number) -> codes (n,), scale (ceil(n / 256),) or None
    decode  (codes (n,), scale) -> (n,) float32
    """

    dtype: torch.dtype
    has_scale: bool
    zero: int
    """The code of 0."""
    encode: Callable[[Tensor, Noise], tuple[Tensor, Tensor | None]]
    decode: Callable[[Tensor, Tensor | None], Tensor]


def moment_format(name: str, kind: Kind) -> MomentFormat:
    """Return the format of `optim.moments` for means (momentum among them) or for squares."""
    if name == "fp8":
        return MomentFormat(E4M3, True, 0, lambda v, n: _encode_fp8(v, n, kind), lambda c, s: _decode_fp8(c, s, kind))
    if name == "dynamic8":
        signed = kind == "mean"
        return MomentFormat(
            torch.uint8, True, int(tables(torch.device("cpu"), signed=signed)[0].eq(0).nonzero()),
            lambda v, n: _encode_dynamic(v, signed), lambda c, s: _decode_dynamic(c, s, signed),
        )  # fmt: skip
    if name == "bfloat16":
        return MomentFormat(
            torch.bfloat16, False, 0, lambda v, n: (round_to_bfloat16(v, n), None), lambda c, s: c.to(torch.float32)
        )
    assert name == "float32", name
    return MomentFormat(torch.float32, False, 0, lambda v, n: (v, None), lambda c, s: c.to(torch.float32, copy=True))


def format_of(codes: torch.dtype, kind: Kind) -> MomentFormat:
    """Return the format that codes of a dtype are in."""
    names = {E4M3: "fp8", torch.uint8: "dynamic8", torch.bfloat16: "bfloat16", torch.float32: "float32"}
    return moment_format(names[codes], kind)


def kind_of(key: str) -> Kind:
    """Return what a key of the optimizer's state holds."""
    return "square" if key == "exp_avg_sq" else "mean"


def zeros(key: str, like: Tensor, format: MomentFormat) -> dict[str, Tensor]:
    """Return the state of a moment that is zero everywhere, under its key and that of its scales.

    like  the parameter; where ranks share it they share codes and scales in the same way, see `rows_of_block`
    """
    codes = torch.zeros_like(like, dtype=format.dtype, memory_format=torch.contiguous_format)
    if format.zero:
        local(codes).fill_(format.zero)
    if not format.has_scale:
        return {key: codes}
    shape, rows = scale_shape(like.shape), rows_of_block(like.shape)
    mine = (-(-local(like).shape[0] // rows), shape[1])
    scale = torch.ones(mine, dtype=torch.float32, device=like.device)
    return {key: codes, key + SCALE: shared_as(like, scale, shape)}


def rows_of_block(shape: Sequence[int]) -> int:
    """Return the fewest rows of a moment, of its first dim, that fill whole blocks; parts of ranks consist of them."""
    return BLOCK_SIZE // math.gcd(BLOCK_SIZE, math.prod(shape[1:]))


def scale_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return the shape of the scales of a moment: a row of them to each `rows_of_block` of its rows.

    So whoever has a part of the moment has the same part of its scales. Behind the last block may be some of nobody.
    """
    rows, row = rows_of_block(shape), math.prod(shape[1:])
    if shape[0] <= rows:
        return 1, num_scales(shape[0] * row)
    return -(-shape[0] // rows), rows * row // BLOCK_SIZE


def num_scales(elements: int) -> int:
    """Return how many scales belong to so many values."""
    return -(-elements // BLOCK_SIZE)


def _encode_fp8(values: Tensor, noise: Noise, kind: Kind) -> tuple[Tensor, Tensor]:
    blocks = _in_blocks(values)
    in_blocks = noise if isinstance(noise, int) else _in_blocks(noise)
    amax = blocks.abs().amax(1)
    root = amax.sqrt() if kind == "square" else amax
    scale = round_up_to_power_of_two((root / E4M3_MAX).clamp_min(_LEAST_SCALE[kind]))
    if kind == "square":
        codes = round_squares_to_e4m3(blocks / scale.square()[:, None], in_blocks)
    else:
        codes = round_to_e4m3(blocks / scale[:, None], in_blocks)
    return codes.view(-1)[: len(values)], scale


def _decode_fp8(codes: Tensor, scale: Tensor | None, kind: Kind) -> Tensor:
    assert scale is not None
    blocks = _in_blocks(codes.view(torch.uint8)).view(E4M3)
    tiles = scale[:, None].expand(-1, BLOCK_SIZE // BLOCK)
    values = dequantize_e4m3_tile(blocks, tiles, torch.float32).view(-1)[: len(codes)]
    return values.square_() if kind == "square" else values


def _encode_dynamic(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    _, borders = tables(values.device, signed=signed)
    blocks = _in_blocks(values)
    amax = blocks.abs().amax(1)
    codes = torch.bucketize(blocks / amax.masked_fill(amax == 0, 1)[:, None], borders, out_int32=True)
    if not signed:
        codes.clamp_min_((blocks > 0).to(codes.dtype))
    return codes.to(torch.uint8).view(-1)[: len(values)], amax


def _decode_dynamic(codes: Tensor, scale: Tensor | None, signed: bool) -> Tensor:
    assert scale is not None
    found = tables(codes.device, signed=signed)[0][codes.to(torch.int32)]
    return (_in_blocks(found) * scale[:, None]).view(-1)[: len(codes)]


def _in_blocks(values: Tensor) -> Tensor:
    """View (n,) as (ceil(n / 256), 256), zeros behind the end."""
    if missing := -len(values) % BLOCK_SIZE:
        values = torch.nn.functional.pad(values, (0, missing))
    return values.view(-1, BLOCK_SIZE)
