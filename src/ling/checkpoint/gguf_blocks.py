"""Values as the `gguf` package packs them, and the package itself, which is an extra.

Q8_0   float16 scale, 32 signed bytes                      34 bytes, 8.5 bits per weight
Q4_0   float16 scale, 32 four-bit codes, value (c - 8) d   18 bytes, 4.5 bits per weight
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ling.errors import CheckpointError, ConfigError

_LARGEST = {"F16": 65504.0, "Q8_0": 127 * 65504.0, "Q4_0": 8 * 65504.0}
"""Beyond this a value, or the float16 scale of its block, is infinite."""
_NEGLIGIBLE = 2.0**-120
"""A block whose largest value is below has a scale of zero; its reciprocal must not overflow before."""


@torch.no_grad()
def encode_gguf(values: Tensor, stored: str, key: str = "") -> "np.ndarray[Any, Any]":
    """Return the bytes of `values` in the type `stored`, as an array; CheckpointError names `key` if they overflow.

    values  (rows, columns)  any float dtype; a whole number of blocks per row
    """
    low, high = (float(extreme) for extreme in values.aminmax())
    if (limit := _LARGEST.get(stored)) is not None and max(-low, high) > limit:
        raise CheckpointError(f"tensor {key} has values above {limit:g}, which {stored} cannot hold; use bfloat16")
    values = values.contiguous().cpu()
    if stored == "BF16":
        return values.bfloat16().view(torch.int16).numpy()
    if stored in ("F16", "F32"):
        return values.to(torch.float16 if stored == "F16" else torch.float32).numpy()
    gguf = library()
    x = values.float()
    x = torch.where(x.abs() < _NEGLIGIBLE, 0.0, x)
    codes: np.ndarray[Any, Any] = gguf.quants.quantize(x.numpy(), gguf.GGMLQuantizationType[stored])
    return codes


def block_size(stored: str) -> tuple[int, int]:
    """Return the values and the bytes of a block."""
    gguf = library()
    sizes: tuple[int, int] = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[stored]]
    return sizes


def library() -> Any:
    """Return the package; ConfigError that says how to install it."""
    try:
        import gguf
    except ImportError:
        raise ConfigError("GGUF files need the package gguf; install it with: pip install 'ling[gguf]'") from None
    return gguf
