"""Weights of 8 or 4 bits: codes with one float16 scale per row and 32 columns.

`scale` is always what codes are multiplied by to give values. Rounding is to the nearest code, symmetric around zero:
int8 codes lie in [-127, 127], int4 codes in [-8, 7]. With its scale a weight takes 8.5 or 4.5 bits.

Codes are laid out for the processor's integer dot products (`ops/cpu/kernels/kernels.h`), in tiles of 16 rows:

    int8  codes (..., tiles, groups, 8, 16, 4) uint8: quad of columns, row, column in the quad; value + 128
    int4  codes (..., tiles, groups, 4, 16, 4) uint8: low nibble quad q, high nibble quad q + 4; value + 8
          scales (..., tiles, groups, 16) float16

`dequantize` is the reference of every product with such a weight, on any device.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from ling.errors import ConfigError
from ling.ops.backend import op

PackedFormat = Literal["int8", "int4"]
PACKED_FORMATS: tuple[str, ...] = get_args(PackedFormat)

TILE, GROUP, _QUAD = 16, 32, 4
_ZERO_POINT = {"int8": 128, "int4": 8}
_CODES_PER_BYTE = {"int8": 1, "int4": 2}
_STEPS: dict[str, tuple[float, ...]] = {
    "int8": (127.0, 126.0, 125.0, 124.0, 123.0, 122.0, 121.0, 120.0),
    "int4": (-8.0, -7.5, -7.0, -6.5),
}
"""The largest magnitude of a group becomes one of these codes, whichever leaves the smallest squared error.

For int8 that leaves 18 % less of it than 127 alone (16 steps: 20 %), and the product takes as long as before.
"""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A matrix (M, K), or a stack of them (E, M, K), as codes and scales.

    rows  sizes of the matrices that are stacked along M, each beginning with a tile of its own; (M,) for a plain one
    """

    format: PackedFormat
    codes: Tensor
    scales: Tensor
    rows: tuple[int, ...]
    columns: int
    shape: torch.Size = field(init=False)

    def __post_init__(self) -> None:
        assert self.codes.shape == codes_shape(self.format, self.codes.shape[:-5], self.rows, self.columns), (
            f"codes {tuple(self.codes.shape)} do not hold {self.rows} rows of {self.columns} in {self.format}"
        )
        shape = torch.Size((*self.codes.shape[:-5], sum(self.rows), self.columns))
        object.__setattr__(self, "shape", shape)

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def expert(self, index: int) -> "PackedWeight":
        """Return one matrix of a stack, (M, K)."""
        return PackedWeight(self.format, self.codes[index], self.scales[index], self.rows, self.columns)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return the values, (..., M, K) in `dtype`."""
        values = (_unpack(self.codes, self.format).float() - _ZERO_POINT[self.format]) * _per_code(self.scales)
        rows = _rows_from_tiles(values)[..., : self.columns].to(dtype)
        begins = [0]
        for count in self.rows:
            begins.append(begins[-1] + num_tiles(count) * TILE)
        parts = [rows[..., begin : begin + count, :] for begin, count in zip(begins, self.rows)]
        return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, dim=-2)


def quantize_int8(w: Tensor) -> PackedWeight:
    """Quantise (M, K) or (E, M, K) to 8 bits: per group the best of a few scales."""
    return quantize(w, "int8")


def quantize_int4(w: Tensor) -> PackedWeight:
    """Quantise (M, K) or (E, M, K) to 4 bits: per group the best of a few scales."""
    return quantize(w, "int4")


def quantize(w: Tensor, format: PackedFormat, rows: tuple[int, ...] | None = None) -> PackedWeight:
    """Quantise (M, K) or (E, M, K); `rows` as in `PackedWeight`. Raises ConfigError where no float16 is its scale."""
    parts = [pack_rows(part, format) for part in w.split(rows or (w.shape[-2],), dim=-2)]
    codes, scales = (torch.cat(x, dim=dim) if len(x) > 1 else x[0] for x, dim in zip(zip(*parts), (-5, -3)))
    if not bool(torch.isfinite(scales).all()):
        raise ConfigError(f"a weight of {format} has groups whose scale does not fit float16; keep it unquantised")
    return PackedWeight(format, codes, scales, rows or (w.shape[-2],), w.shape[-1])


@op(cpu="ling.ops.cpu.packed")
def pack_rows(w: Tensor, format: PackedFormat) -> tuple[Tensor, Tensor]:
    """Return codes and scales of one matrix (M, K), or of one per leading index; no scale is checked."""
    M, K = w.shape[-2:]
    padded = torch.nn.functional.pad(w.float(), (0, -K % GROUP, 0, -M % TILE))
    groups = padded.unflatten(-1, (-1, GROUP))  # (..., M, groups, 32)
    scales = _best_scales(groups, format)
    codes = _to_codes(groups, scales.float(), format).add_(_ZERO_POINT[format]).to(torch.uint8)
    tiles = codes.unflatten(-3, (-1, TILE)).unflatten(-1, (-1, _QUAD))  # (..., tiles, 16, groups, 8, 4)
    packed = tiles.movedim(-4, -2)  # (..., tiles, groups, 8, 16, 4)
    if format == "int4":
        low, high = packed.chunk(2, dim=-3)
        packed = low | (high << 4)
    return packed.contiguous(), scales.unflatten(-2, (-1, TILE)).transpose(-1, -2).contiguous()


def codes_shape(format: str, leading: tuple[int, ...], rows: tuple[int, ...], columns: int) -> tuple[int, ...]:
    """Return the shape of the codes of (*leading, sum(rows), columns)."""
    quads = GROUP // _QUAD // _CODES_PER_BYTE[format]
    return (*leading, sum(num_tiles(m) for m in rows), num_groups(columns), quads, TILE, _QUAD)


def scales_shape(leading: tuple[int, ...], rows: tuple[int, ...], columns: int) -> tuple[int, ...]:
    """Return the shape of the scales of (*leading, sum(rows), columns)."""
    return (*leading, sum(num_tiles(m) for m in rows), num_groups(columns), TILE)


def num_tiles(rows: int) -> int:
    return -(-rows // TILE)


def num_groups(columns: int) -> int:
    return -(-columns // GROUP)


def check_format(name: str) -> PackedFormat:
    """Return `name`. Raises ConfigError if it is no format."""
    if name not in PACKED_FORMATS:
        raise ConfigError(f"weights can be packed as {' or '.join(PACKED_FORMATS)}, not as {name}")
    return name  # type: ignore[return-value]


def _best_scales(groups: Tensor, format: str) -> Tensor:
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)  # with its sign
    if format == "int8":
        largest = largest.abs()
    best, least = None, None
    for step in _STEPS[format]:
        scales = (largest / step).to(torch.float16)
        wide = scales.float()
        error = _tree_sum((_to_codes(groups, wide, format).mul_(wide[..., None]) - groups).square_())
        if best is None or least is None:
            best, least = scales, error
            continue
        better = error < least
        best, least = torch.where(better, scales, best), torch.where(better, error, least)
    assert best is not None
    return best


def _tree_sum(x: Tensor) -> Tensor:
    """Add up the last dim half by half, so that every twin finds the same sum and takes the same scale."""
    while x.shape[-1] > 1:
        low, high = x.chunk(2, dim=-1)
        x = low + high
    return x.squeeze(-1)


def _to_codes(groups: Tensor, scales: Tensor, format: str) -> Tensor:
    """Return the nearest codes as float32; zeros where the scale is zero."""
    inverse = torch.where(scales == 0, 0.0, 1 / scales)
    low, high = (-127, 127) if format == "int8" else (-8, 7)
    return (groups * inverse[..., None]).round_().clamp_(low, high)


def _unpack(codes: Tensor, format: str) -> Tensor:
    """Return a byte per code, (..., tiles, groups, 8, 16, 4)."""
    return codes if format == "int8" else torch.cat([codes & 15, codes >> 4], dim=-3)


def _per_code(scales: Tensor) -> Tensor:
    return scales.float()[..., None, :, None]


def _rows_from_tiles(values: Tensor) -> Tensor:
    """Turn (..., tiles, groups, 8, 16, 4) into (..., tiles * 16, groups * 32)."""
    return values.movedim(-2, -4).flatten(-3).flatten(-3, -2)
