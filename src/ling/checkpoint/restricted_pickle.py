"""Read the pickles of distributed checkpoints without running what they say.

A pickle names the things it wants called. For `.metadata` we know the few plain records that torch writes, and refuse
every other name. `common.pt` of Megatron may name anything; there every unknown name becomes an inert `Opaque`. Either
way a checkpoint from a stranger can at worst be wrong.

The standard library's unpickler in Python is used, not its C twin: that one allocates by what a pickle claims (an index
into its memo, a length), so a few bytes could take all memory.
"""

import argparse
import collections
import io
import pickle
from pathlib import PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.serialization import _get_layout

from ling.errors import CheckpointError

_RECORDS = (
    "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
    "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
)  # fmt: skip


def _member(kind: Any, name: Any) -> Any:
    """Stand for `getattr`, by which Python 3.11.0 to 3.11.3 pickle members of enums; it gives nothing else."""
    if kind is not dcp_metadata._MEM_FORMAT_ENCODING or name not in kind.__members__:
        raise CheckpointError("its metadata asks for builtins.getattr, which a checkpoint has no use for")
    return kind[name]


_ALLOWED: dict[tuple[str, str], Any] = {
    ("builtins", "getattr"): _member,
    **{(dcp_metadata.__name__, name): getattr(dcp_metadata, name) for name in _RECORDS},
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _StorageInfo,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _get_layout,
    ("pathlib", "PosixPath"): PurePosixPath,
    ("pathlib._local", "PosixPath"): PurePosixPath,
}


class _RestrictedUnpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module.startswith("megatron.") and name == "MCoreMetadata":  # torch's record with a field of Megatron's own
            return dcp_metadata.Metadata
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise CheckpointError(f"its metadata asks for {module}.{name}, which a checkpoint has no use for")


def read_dcp_metadata(content: bytes, where: str) -> dcp_metadata.Metadata:
    """Unpickle the bytes of a `.metadata` file; CheckpointError if they are damaged, foreign or unsafe."""
    try:
        metadata = _RestrictedUnpickler(io.BytesIO(content)).load()
    except CheckpointError as error:
        raise CheckpointError(f"{where} is not safe to read: {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(f"{where} is damaged ({type(error).__name__}); copy the checkpoint again") from None
    if not isinstance(metadata, dcp_metadata.Metadata):
        raise CheckpointError(f"{where} is not the metadata of a distributed checkpoint")
    return metadata


class Opaque:
    """Stands where a pickle wanted an object of a class that we neither know nor look up."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        pass

    def extend(self, _: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _PlainUnpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = {("argparse", "Namespace"): argparse.Namespace, ("collections", "OrderedDict"): collections.OrderedDict}
        return known.get((module, name), Opaque)

    def persistent_load(self, pid: Any) -> Any:
        return Opaque()  # a tensor's storage


def read_plain_values(content: bytes, where: str) -> Any:
    """Unpickle dicts, lists, numbers, strings and argparse namespaces; anything else is an `Opaque`."""
    try:
        return _PlainUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(f"{where} is damaged ({type(error).__name__}); copy the checkpoint again") from None
