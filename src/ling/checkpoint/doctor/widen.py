"""Rewrite a safetensors file with a few small tensors in float32; everything else is copied as bytes."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from ling.checkpoint.doctor.headers import read_header

_CHUNK = 2**24
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}


def widen_file(source: Path, target: Path, keys: set[str], advance: Callable[[int], None]) -> None:
    """Write `source` to `target` with the tensors `keys` as F32; `advance` is called with the bytes copied so far."""
    header = read_header(source)
    order = sorted(header.tensors.items(), key=lambda item: item[1].start)
    told: dict[str, object] = {"__metadata__": header.metadata} if header.metadata else {}
    end = 0
    for key, tensor in order:
        widened = key in keys and tensor.dtype in _DTYPES
        size = 2 * tensor.nbytes if widened else tensor.nbytes
        told[key] = {
            "dtype": "F32" if widened else tensor.dtype, "shape": tensor.shape, "data_offsets": [end, end + size],
        }  # fmt: skip
        end += size
    encoded = json.dumps(told, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start aligned
    with source.open("rb") as reading, target.open("wb") as writing:
        writing.write(len(encoded).to_bytes(8, "little") + encoded)
        for key, tensor in order:
            reading.seek(header.data_start + tensor.start)
            if key in keys and tensor.dtype in _DTYPES:
                values = torch.frombuffer(bytearray(reading.read(tensor.nbytes)), dtype=_DTYPES[tensor.dtype])
                writing.write(values.float().numpy().tobytes())
                continue
            left = tensor.nbytes
            while left:
                chunk = reading.read(min(left, _CHUNK))
                writing.write(chunk)
                left -= len(chunk)
                advance(reading.tell())
    advance(source.stat().st_size)
