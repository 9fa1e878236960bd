"""Any checkpoint as a source of published tensors: one `Piece` at a time, in the order of `published_pieces`."""

from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ling.checkpoint.dcp import FACTS_NAME, DcpSource
from ling.checkpoint.layout import EMBEDDING, MODEL_PREFIX, NOT_WEIGHTS, Layout, megatron_layout, training_layout
from ling.checkpoint.load import PieceReader, read_config
from ling.checkpoint.megatron import COMMON_NAME, config_from_args, find_iteration, read_args
from ling.checkpoint.names import Piece, published_pieces
from ling.checkpoint.source import quoted
from ling.config import ModelConfig, read_published
from ling.errors import CheckpointError
from ling.tokenizer.files import TOKENIZER, named_ids

TOKENIZER_DIRECTORY = "tokenizer"
"""Of the tokenizer inside a training checkpoint."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
    "chat_template.jinja", "vocab.json", "merges.txt", "added_tokens.json",
)  # fmt: skip
_TOKENIZER_ARGS = ("spm_tokenizer_path", "tokenizer_model")
HELD_STACKS = 2  # an expert's gate and up lie in one stacked tensor, its down in another


class PieceSource(Protocol):
    """A checkpoint that is read from."""

    kind: str
    """What it is, for messages: `safetensors`, `training checkpoint`, `Megatron checkpoint`, `GGUF file`."""
    directory: Path
    """Where it lies; of a GGUF file the file."""
    config: ModelConfig
    shares: tuple[float, ...]
    """What each of `directories` counts for in the values that are read."""

    @property
    def directories(self) -> tuple[Path, ...]:
        """Everything that is read from: directories, and GGUF files."""
        ...

    def read(self, piece: Piece) -> Tensor:
        """Return the values of a published tensor, in the dtype they are stored in (FP8 blocks: float32)."""
        ...

    def release(self) -> None:
        """Let go of what is held so that the next `read` is fast."""
        ...

    def dtype(self, piece: Piece) -> torch.dtype:
        """Return the dtype that `read` gives, without reading."""
        ...

    def reopen(self) -> "PieceSource":
        """Return the same source with handles of its own, for another thread."""
        ...

    def tokenizer_files(self) -> list[Path]:
        """Return the files that belong beside the weights: tokenizer and generation settings."""
        ...


def open_pieces(directory: Path, tokenizer: Path | None = None) -> PieceSource:
    """Find out what `directory` is and open it; CheckpointError that lists what it could have been.

    tokenizer  directory of the one to use, for a Megatron checkpoint, whose special ids are the tokenizer's
    """
    if directory.is_file():
        return _open_file(directory)
    if (iteration := find_iteration(directory)) is not None:
        return megatron_pieces(iteration, tokenizer)
    if (directory / ".metadata").is_file():
        return training_pieces(directory)
    if (directory / "config.json").is_file():
        return SafetensorsPieces(directory)
    if not directory.exists():
        raise CheckpointError(f"{directory} does not exist")
    raise CheckpointError(
        f"{directory} is no checkpoint we know: Hugging Face directories have config.json, training checkpoints "
        ".metadata, Megatron's common.pt or latest_checkpointed_iteration.txt"
    )


def _open_file(path: Path) -> PieceSource:
    from ling.checkpoint.gguf_source import GgufPieces, is_gguf  # it is built on what is written here

    if not is_gguf(path):
        raise CheckpointError(
            f"{path} is a file, and only GGUF files are checkpoints by themselves; give the directory"
        )
    return GgufPieces(path)


class SafetensorsPieces:
    """A Hugging Face directory, FP32, BF16 or FP8."""

    kind = "safetensors"
    shares: tuple[float, ...] = (1.0,)

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = read_config(directory)
        self._reader = PieceReader(directory, self.config)

    @property
    def directories(self) -> tuple[Path, ...]:
        return (self.directory,)

    def read(self, piece: Piece) -> Tensor:
        return self._reader.values(piece)

    def release(self) -> None:
        pass

    def dtype(self, piece: Piece) -> torch.dtype:
        return self._reader.dtype(piece)

    def stored(self, piece: Piece) -> tuple[Tensor, ...]:
        """Return what the files hold of a piece: its values, or codes and scales."""
        return self._reader.stored(piece)

    def is_quantized(self, piece: Piece) -> bool:
        """Whether the files hold a piece as codes and scales."""
        return self._reader.is_quantized(piece)

    def reopen(self) -> "SafetensorsPieces":
        again = SafetensorsPieces(self.directory)
        again.config = self.config
        return again

    def tokenizer_files(self) -> list[Path]:
        return _known_files(self.directory)


class DcpPieces:
    """A distributed checkpoint whose tensors hold the pieces where `layout` says."""

    shares: tuple[float, ...] = (1.0,)

    def __init__(self, source: DcpSource, config: ModelConfig, layout: Layout, kind: str, tokenizer: Path) -> None:
        self.kind = kind
        self.directory = source.directory
        self.config = config
        self._source = source
        self._layout = layout
        self._tokenizer = tokenizer
        self._held: OrderedDict[str, Tensor] = OrderedDict()

    @property
    def directories(self) -> tuple[Path, ...]:
        return (self.directory,)

    def read(self, piece: Piece) -> Tensor:
        place = self._layout(piece)
        if place.key not in self._held:
            while len(self._held) >= HELD_STACKS:
                self._held.popitem(last=False)
            self._held[place.key] = self._source.read(place.key, place.shape)
        self._held.move_to_end(place.key)
        return place.get(self._held[place.key])

    def release(self) -> None:
        self._held.clear()

    def dtype(self, piece: Piece) -> torch.dtype:
        return self._source.dtype(self._layout(piece).key)

    def check_nothing_is_left(self, keys: list[str]) -> None:
        """Raise CheckpointError if a tensor of `keys` is none of the model's."""
        places = {self._layout(piece).key for piece in published_pieces(self.config)}
        if left := sorted(set(keys) - places):
            more = f" and {len(left) - 1} more tensors" if len(left) > 1 else ""
            raise CheckpointError(f"{self.directory} holds {quoted(left[0])}{more}, which this model has no place for")

    def reopen(self) -> "DcpPieces":
        return DcpPieces(DcpSource(self.directory), self.config, self._layout, self.kind, self._tokenizer)

    def tokenizer_files(self) -> list[Path]:
        return _known_files(self._tokenizer)


def training_pieces(directory: Path) -> DcpPieces:
    """Open one of `ling`'s training checkpoints."""
    source = DcpSource(directory)
    if not (directory / FACTS_NAME).is_file():
        raise CheckpointError(
            f"{directory} has .metadata, but neither {FACTS_NAME}, as our training checkpoints have, nor Megatron's "
            f"{COMMON_NAME}; copy it again, whole"
        )
    model = source.facts().get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{directory / FACTS_NAME} does not say what model this is; copy the checkpoint again")
    config = read_published(model, where=str(directory / FACTS_NAME))
    pieces = DcpPieces(source, config, training_layout(config), "training checkpoint", directory / TOKENIZER_DIRECTORY)
    pieces.check_nothing_is_left([key for key in source.tensors if key.startswith(MODEL_PREFIX)])
    return pieces


def megatron_pieces(iteration: Path, tokenizer: Path | None = None) -> DcpPieces:
    """Open an iteration of a Megatron `torch_dist` checkpoint; `tokenizer` as in `open_pieces`."""
    source = DcpSource(iteration)
    args = read_args(iteration)
    layers = {key.split(".")[2] for key in source.tensors if key.startswith("mtp.layers.")}
    embedding = source.tensors.get(EMBEDDING)
    tokenizer = tokenizer or _tokenizer_of(iteration, args)
    config = config_from_args(
        args, len(layers), f"{iteration / 'common.pt'}",
        vocab_rows=embedding.size[0] if embedding is not None and embedding.size else None,
        special_ids=named_ids(tokenizer) if (tokenizer / TOKENIZER).is_file() else None,
    )  # fmt: skip
    pieces = DcpPieces(source, config, megatron_layout(config), "Megatron checkpoint", tokenizer)
    pieces.check_nothing_is_left([key for key in source.tensors if not any(mark in key for mark in NOT_WEIGHTS)])
    return pieces


def _tokenizer_of(iteration: Path, args: dict[str, Any]) -> Path:
    """Return where a checkpoint's tokenizer lies: where its arguments say, or inside it, where we write it."""
    inside = (iteration / TOKENIZER_DIRECTORY, iteration.parent / TOKENIZER_DIRECTORY)
    told = [Path(path) for name in _TOKENIZER_ARGS if isinstance(path := args.get(name), str)]
    places = [*told, *inside]
    return next((place for place in places if "\0" not in str(place) and (place / TOKENIZER).is_file()), places[0])


def files_of_tokenizer(directory: Path) -> list[Path]:
    """Return the tokenizer's files in `directory`, which may hold anything else as well."""
    if not (directory / "tokenizer.json").is_file():
        raise CheckpointError(f"{directory} has no tokenizer.json: it is not a tokenizer")
    return _known_files(directory)


def _known_files(directory: Path) -> list[Path]:
    return [directory / name for name in TOKENIZER_FILES if (directory / name).is_file()]
