"""Random bits that are a function, not a stream: of a key and a position, the same on every device.

Nothing has to be kept to go on with them, and replicas that agree on key and position agree on the bits.
"""

import zlib

import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1
# splitmix64's finaliser (Steele, Lea and Flood, OOPSLA 2014), on Python integers and on int64 tensors that wrap.
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
LANES = 4
"""Independent values of 16 bits that one position gives."""


def noise_key(seed: int, step: int, name: str) -> int:
    """Return a key of 64 bits."""
    return _mix_int(_mix_int(_mix_int(seed & _MASK64) ^ (step & _MASK64)) ^ zlib.crc32(name.encode()))


def random_bits(key: int, first: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return 64 bits for each of the positions first to first + count - 1: (count,) int64."""
    z = torch.arange(first, first + count, dtype=torch.int64, device=device) ^ _signed(key)
    z += _signed(_STEP)
    z = (z ^ _shift_right(z, 30)).mul_(_signed(_FIRST))
    z = (z ^ _shift_right(z, 27)).mul_(_signed(_SECOND))
    return z ^ _shift_right(z, 31)


def lane(bits: Tensor, index: int) -> Tensor:
    """Return one of `LANES` values from 0 to 65,535, int32, out of `random_bits`."""
    return ((bits >> (16 * index)) & 0xFFFF).to(torch.int32)


def _mix_int(z: int) -> int:
    z = (z + _STEP) & _MASK64
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK64
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK64
    return z ^ (z >> 31)


def _shift_right(z: Tensor, count: int) -> Tensor:
    """Shift zeros in, as an unsigned integer would."""
    return (z >> count) & ((1 << (64 - count)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
