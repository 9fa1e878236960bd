"""GGUF, the file of llama.cpp and its relatives: written one matrix at a time, with the `gguf` package.

The package writes a file's header from the sizes of its tensors, and asks each for its bytes when its turn comes.
Norms, routers and expert biases are float32 whatever is asked for: llama.cpp adds and multiplies them as such.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ling.checkpoint.atomic import atomic_file, check_free_file
from ling.checkpoint.finite import check_finite
from ling.checkpoint.gguf_blocks import block_size, encode_gguf, library
from ling.checkpoint.gguf_layout import HEAD, check_fits_gguf, gguf_layout
from ling.checkpoint.gguf_metadata import ARCHITECTURE, add_model, add_tokenizer
from ling.checkpoint.names import Piece, published_pieces
from ling.checkpoint.pieces import PieceSource, files_of_tokenizer
from ling.config import ModelConfig
from ling.errors import CheckpointError

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter

GgufType = Literal["float32", "float16", "bfloat16", "q8_0", "q4_0"]
GGUF_TYPES: tuple[GgufType, ...] = get_args(GgufType)

MAGIC = b"GGUF"
_STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
_FILE_TYPES = {
    "float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0",
    "q4_0": "MOSTLY_Q4_0",
}  # fmt: skip
_CHUNK = 2**20
"""Values that are encoded at once: several times more leave the processor's cache and take twice as long."""

Advance = Callable[[Piece], None]


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of the file, and the published tensors that follow each other in it."""

    name: str
    shape: tuple[int, ...]
    stored: str
    """The format's name of its type: `F32`, `BF16`, `Q8_0`, ..."""
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        block, block_bytes = block_size(self.stored)
        return math.prod(self.shape) // block * block_bytes


def plan_gguf(model: ModelConfig, dtype: GgufType, where: str = "the model") -> list[GgufTensor]:
    """List the tensors of a file; CheckpointError if the format has no place for `model`, `where` names it."""
    check_fits_gguf(model, where)
    layout = gguf_layout(model)
    parts: dict[str, list[Piece]] = {}
    for piece in published_pieces(model):
        parts.setdefault(layout(piece).key, []).append(piece)
    if model.tie_word_embeddings:  # llama.cpp's loader wants a head
        parts[HEAD] = published_pieces(model)[:1]
    tensors = []
    for name, pieces in parts.items():
        shape, stored = layout(pieces[0]).shape, _stored_type(name, pieces[0], dtype)
        block, _ = block_size(stored)
        if shape[-1] % block:
            raise CheckpointError(
                f"{name} has rows of {shape[-1]} values, and {dtype} packs {block} of a row into a block; "
                "use --dtype bfloat16"
            )
        tensors.append(GgufTensor(name, shape, stored, tuple(pieces)))
    return tensors


def to_gguf(
    source: PieceSource,
    target: Path,
    dtype: GgufType = "bfloat16",
    *,
    tokenizer: Path | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `source` as one GGUF file with its tokenizer.

    tokenizer  directory of one in place of the source's
    The file appears whole or not at all.
    """
    tensors = plan_gguf(source.config, dtype, str(source.directory))
    directory = tokenizer_directory(source, tokenizer)
    check_gguf_target(source, target, overwrite=overwrite)
    advance = _counter(tensors, progress)
    with atomic_file(target, overwrite=overwrite) as partial, _writer(partial) as writer:
        _add_facts(writer, source.config, dtype, target.stem)
        add_tokenizer(writer, directory, source.config.vocab_size)
        gguf = library()
        for tensor in tensors:
            kind = gguf.GGMLQuantizationType[tensor.stored]
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=kind)
        writer.add_size_label(gguf.size_label(*writer.get_total_parameter_count()))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            stream: Any = _Stream(tensor, source, advance)
            writer.write_tensor_data(stream)


def verify_gguf(
    source: PieceSource, target: Path, dtype: GgufType, progress: Callable[[int, int], None] | None = None
) -> int:
    """Compare every tensor of `target` with what `source` gives, bit for bit; return how many published ones."""
    tensors = plan_gguf(source.config, dtype, str(source.directory))
    written = {tensor.name: tensor for tensor in open_gguf(target).tensors}
    if wrong := written.keys() ^ {tensor.name for tensor in tensors}:
        raise CheckpointError(f"{min(wrong)} lies in only one of {target} and {source.directory}; convert it again")
    advance = _counter(tensors, progress)
    for tensor in tensors:
        found, offset = written[tensor.name].data.reshape(-1).view(np.uint8), 0
        same = written[tensor.name].tensor_type.name == tensor.stored and found.nbytes == tensor.nbytes
        for chunk in _Stream(tensor, source, advance).chunks():
            same = same and np.array_equal(found[offset : offset + chunk.nbytes], chunk.reshape(-1).view(np.uint8))
            offset += chunk.nbytes
        if not same:
            raise CheckpointError(f"{tensor.name} in {target} is not what {source.directory} holds; convert it again")
    return sum(len(tensor.pieces) for tensor in tensors)


def check_gguf_target(source: PieceSource, target: Path, *, overwrite: bool = False) -> None:
    """Refuse to replace the source, what is not a GGUF file, or anything without being told to."""
    if target.resolve() in [place.resolve() for place in source.directories]:
        raise CheckpointError(f"{target} is the source itself; choose another target")
    if target.is_file():
        with target.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise CheckpointError(f"{target} exists and is not a GGUF file; choose another target")
    check_free_file(target, overwrite=overwrite)


def tokenizer_directory(source: PieceSource, tokenizer: Path | None) -> Path:
    """Return where the tokenizer lies that goes into the file: the one given, or the source's own."""
    if tokenizer is not None:
        return files_of_tokenizer(tokenizer)[0].parent
    for file in source.tokenizer_files():
        if file.name == "tokenizer.json":
            return file.parent
    raise CheckpointError(
        f"{source.directory} comes without a tokenizer, and a GGUF file holds its own; give one with --tokenizer"
    )


def open_gguf(path: Path) -> "GGUFReader":
    """Map a file into memory; CheckpointError if it is not a whole GGUF file."""
    gguf = library()

    class Reader(gguf.GGUFReader):  # type: ignore[misc, name-defined]
        """As the package's own, which beyond the end of a file reads nothing, as often as a header says."""

        def _get(self, offset: int, dtype: Any, count: int = 1, *order: Any, **named: Any) -> Any:
            found = super()._get(offset, dtype, count, *order, **named)
            if len(found) < count:
                raise ValueError("it ends early")
            return found

    try:
        reader: GGUFReader = Reader(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:  # what damage makes it raise
        raise CheckpointError(f"{path} is not a whole GGUF file ({error}); write or copy it again") from None
    return reader


class _Stream:
    """Looks like an array to the package's writer, and is read, encoded and written in chunks."""

    def __init__(self, tensor: GgufTensor, source: PieceSource, advance: Advance) -> None:
        self.nbytes = tensor.nbytes
        self._tensor = tensor
        self._source = source
        self._advance = advance

    def tofile(self, file: IO[bytes]) -> None:
        for chunk in self.chunks():
            file.write(chunk.data)

    def chunks(self) -> Iterator["np.ndarray[Any, Any]"]:
        for piece in self._tensor.pieces:
            values = self._source.read(piece)
            check_finite(values, f"tensor {piece.key}")
            rows = values.reshape(-1, values.shape[-1])
            for chunk in rows.split(max(1, _CHUNK // rows.shape[1])):
                yield encode_gguf(chunk, self._tensor.stored, piece.key)
            self._advance(piece)


def _stored_type(name: str, piece: Piece, dtype: GgufType) -> str:
    if piece.float32 or len(piece.shape) == 1 or name.endswith("ffn_gate_inp.weight"):
        return "F32"
    if name == HEAD and dtype == "q4_0":
        return "Q8_0"  # the head suffers most; llama.cpp's own Q4_0 files keep it at six bits and more
    return _STORED[dtype]


def _add_facts(writer: "GGUFWriter", model: ModelConfig, dtype: GgufType, name: str) -> None:
    gguf = library()
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_model(writer, model)


@contextmanager
def _writer(path: Path) -> Iterator["GGUFWriter"]:
    writer = library().GGUFWriter(path, ARCHITECTURE)
    try:
        yield writer
    finally:
        writer.close()


def _counter(tensors: list[GgufTensor], progress: Callable[[int, int], None] | None) -> Advance:
    total, done = sum(len(tensor.pieces) for tensor in tensors), 0

    def advance(_: Piece) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return advance
