"""Training checkpoints: tensors through torch.distributed.checkpoint, everything else as JSON beside them.

    step_000500/
        .metadata, __0_0.distcp   named tensors: model.*, optim.*, ...
        training.json             plain facts: configuration, step, versions
        tokenizer/                optional

torch would pickle what is not a tensor; we give it none, and refuse to unpickle any on the way back.
"""

import errno
import io
import json
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import (
    CheckpointException,
    DefaultLoadPlanner,
    DefaultSavePlanner,
    FileSystemReader,
    FileSystemWriter,
    load,
    save,
)
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem, SavePlanner

from ling.checkpoint.atomic_of_all import directory_of_all
from ling.checkpoint.dcp_claims import check_extent, check_records, stored_bytes
from ling.checkpoint.restricted_pickle import read_dcp_metadata
from ling.checkpoint.source import read_json
from ling.errors import CheckpointError, LingError

FACTS_NAME = "training.json"


def save_dcp(
    directory: Path,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    *,
    overwrite: bool = False,
    finish: Callable[[Path], None] | None = None,
    together: bool = False,
    group: ProcessGroup | None = None,
) -> None:
    """Write a training checkpoint; the directory appears whole or not at all.

    tensors  flat names to tensors; anything that is not a tensor belongs into `facts`
    facts    JSON values
    finish   is called with the directory before it appears, to add files; on the first rank only
    together all ranks call this at once, each with the parts it holds; they see one file system
    group    of all ranks, over which they talk; None: the default one
    """
    assert all(isinstance(t, Tensor) for t in tensors.values()), [k for k, v in tensors.items() if v is None]
    with directory_of_all(directory, overwrite=overwrite, together=together, group=group) as (partial, is_first):
        save_tensors(partial, tensors, DefaultSavePlanner(), together=together, group=group)
        if not is_first:
            return
        (partial / FACTS_NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        if finish is not None:
            finish(partial)


def save_tensors(
    directory: Path,
    tensors: Mapping[str, Tensor],
    planner: SavePlanner,
    *,
    together: bool = False,
    group: ProcessGroup | None = None,
) -> None:
    """Write tensors and their metadata into an existing directory; OSError if the disk refuses."""
    try:
        _one_process_is_fine()
        save(
            dict(tensors),
            storage_writer=FileSystemWriter(directory),
            planner=planner,
            process_group=group,
            no_dist=not together,
        )
    except CheckpointException as error:
        for failure, _ in error.failures.values():  # torch wraps even Ctrl-C
            if isinstance(failure, LingError | KeyboardInterrupt):
                raise failure from None
        if (reason := _disk_trouble(error)) is None:
            raise
        raise OSError(errno.EIO, reason) from None


def _disk_trouble(error: CheckpointException) -> str | None:
    """Return why the disk refused what torch wrote, or None if it did not."""
    for failure, _ in error.failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, OSError):
                return cause.strerror or str(cause)
            cause = cause.__context__
        if "unexpected pos" in str(failure):  # torch's archive writer, some of whose bytes did not arrive
            return "the disk is full, or took only part of what was written"
    return None


class DcpSource:
    """A training checkpoint to read from: names, shapes and facts at once, tensors when asked for."""

    def __init__(self, directory: Path) -> None:
        if not (directory / ".metadata").is_file():
            raise CheckpointError(f"{directory} is not a training checkpoint: it has no .metadata")
        self.directory = directory
        self._reader = _SafeReader(directory)
        metadata = self._reader.read_metadata().state_dict_metadata
        self.tensors = {name: meta for name, meta in metadata.items() if isinstance(meta, TensorStorageMetadata)}

    def facts(self) -> dict[str, Any]:
        """Return the JSON values saved beside the tensors."""
        return read_json(self.directory / FACTS_NAME)

    def dtype(self, name: str) -> torch.dtype:
        """Return what a tensor is stored as."""
        return self._stored(name).properties.dtype

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """Return one whole tensor, as stored; CheckpointError if it has not `shape`."""
        stored = self._stored(name)
        self._check_shape(name, stored.size if shape is None else shape)
        check_extent(name, stored, self._reader.num_bytes.get(name, 0), self.directory)
        tensor = torch.empty(stored.size, dtype=stored.properties.dtype)
        self.load_into({name: tensor})
        return tensor

    def _stored(self, name: str) -> TensorStorageMetadata:
        if name not in self.tensors:
            raise CheckpointError(f"{self.directory} lacks tensor {name}")
        return self.tensors[name]

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if (stored := self._stored(name)).size != torch.Size(shape):
            raise CheckpointError(
                f"tensor {name} is {tuple(stored.size)} in {self.directory}, "
                f"here it is {tuple(shape)}: the checkpoint is of another model"
            )

    def load_into(self, tensors: Mapping[str, Tensor], *, together: bool = False) -> None:
        """Fill `tensors` in place; CheckpointError if one is missing or has another shape.

        together  all ranks call this at once, each with the parts it holds
        """
        for name, tensor in tensors.items():
            self._check_shape(name, tensor.shape)
        try:
            _one_process_is_fine()
            load(
                dict(tensors),
                storage_reader=self._reader,
                planner=_TensorsOnly(),
                no_dist=not together,
            )
        except CheckpointException as error:  # torch's wrapper of whatever a truncated file makes it raise
            failure = next((f for f, _ in error.failures.values()), error)
            reason = " ".join(str(failure).split())[:120]
            raise CheckpointError(
                f"{self.directory}: a .distcp file is missing or damaged ({reason}); copy the checkpoint again"
            ) from None


def _one_process_is_fine() -> None:
    """Silence torch's warning that it works in a single process, which `no_dist` tells it to do.

    For good: `warnings.catch_warnings` is not safe where several threads read.
    """
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


class _SafeReader(FileSystemReader):
    """torch's reader, with metadata read once, by the restricted unpickler, and file names kept inside."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._checked_metadata

    @cached_property
    def _checked_metadata(self) -> Metadata:
        path = Path(self.path) / ".metadata"
        try:
            metadata = read_dcp_metadata(path.read_bytes(), str(path))
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
        check_records(metadata, path)
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        return metadata

    @cached_property
    def num_bytes(self) -> dict[str, int]:
        """Bytes that the files hold of each tensor."""
        return stored_bytes(self._checked_metadata, Path(self.path))


class _TensorsOnly(DefaultLoadPlanner):
    """torch's planner, which would unpickle byte entries, refusing them."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise CheckpointError(f"entry {read_item.dest_index.fqn} is a pickled object, not a tensor; it is not read")
