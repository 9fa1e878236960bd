"""Random bits that are a function, not a stream: of a key and a position, the same on every device.

Nothing has to be kept to go on with them, and replicas that agree on key and position agree on the bits.
"""

import zlib

import torch
from torch import Tensor

MASK64 = (1 << 64) - 1
# splitmix64's finaliser (Steele, Lea and Flood, OOPSLA 2014), on Python integers and on int64 tensors that wrap.
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
LANES = 4
"""Independent values of 16 bits that one position gives."""


def noise_key(seed: int, step: int, name: str) -> int:
    """Return a key of 64 bits."""
    return mix_int(mix_int(mix_int(seed & MASK64) ^ (step & MASK64)) ^ zlib.crc32(name.encode()))


def random_bits(key: int, first: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return 64 bits for each of the positions first to first + count - 1: (count,) int64."""
    return mix(torch.arange(first, first + count, dtype=torch.int64, device=device) ^ signed_int(key))


def lane(bits: Tensor, index: int) -> Tensor:
    """Return one of `LANES` values from 0 to 65,535, int32, out of `random_bits`."""
    return ((bits >> (16 * index)) & 0xFFFF).to(torch.int32)


def mix_int(z: int) -> int:
    """Return 64 well-mixed bits of an integer."""
    z = (z + _STEP) & MASK64
    z = ((z ^ (z >> 30)) * _FIRST) & MASK64
    z = ((z ^ (z >> 27)) * _SECOND) & MASK64
    return z ^ (z >> 31)


def mix(z: Tensor) -> Tensor:
    """Return `mix_int` of each int64, as bits."""
    z = z + signed_int(_STEP)
    z = (z ^ _shift_right(z, 30)).mul_(signed_int(_FIRST))
    z = (z ^ _shift_right(z, 27)).mul_(signed_int(_SECOND))
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, count: int) -> Tensor:
    """Shift zeros in, as an unsigned integer would."""
    return (z >> count) & ((1 << (64 - count)) - 1)


def signed_int(value: int) -> int:
    """Return the int64 with the same 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value
