"""`ling convert`: any checkpoint becomes any other."""

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ling.cli.progress import progress_bar
from ling.errors import ConfigError

if TYPE_CHECKING:
    from ling.checkpoint.gguf import GgufType
    from ling.checkpoint.pieces import PieceSource
    from ling.checkpoint.save import ExportFormat

_GGUF_ONLY = ("float16", "q8_0", "q4_0")
_PACKED = ("int8", "int4", "mixed")
_SHARD_GB, _LARGEST_SHARD_GB = 5.0, 1e9
MAX_SHARD_SIZE_HELP = "Largest safetensors file, in GB of 10^9 bytes; left out: 5."
_KNOWN = {
    "--to": ("safetensors", "training", "megatron", "gguf"),
    "--dtype": ("float32", "bfloat16", "float8", *_PACKED, *_GGUF_ONLY),
    "--fp8-scales": ("published", "pow2", "fp32"),
    "--mtp": ("keep", "drop", "separate"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What `ling convert` and the published scripts are asked for."""

    source: Path
    target: Path
    to: str = "safetensors"
    dtype: str | None = None
    """None: bfloat16; for a training checkpoint, as stored."""
    fp8_scales: str | None = None
    mtp: str = "keep"
    mtp_target: Path | None = None
    """Where `mtp="separate"` puts the MTP layers; None: `target` with -mtp behind its name."""
    tokenizer: Path | None = None
    max_shard_gb: float | None = None
    """None: 5 GB, where there are shards."""
    workers: int = 1
    verify: bool = False
    dry_run: bool = False
    overwrite: bool = False

    @property
    def packed(self) -> str | None:
        """The formats of packed weights as they were given; None: something else is written."""
        return self.dtype if self.dtype is not None and self.dtype.split(",")[0] in _PACKED else None

    @property
    def mtp_directory(self) -> Path | None:
        """Where MTP layers go that are written apart."""
        if self.mtp != "separate":
            return None
        target = self.target if self.target.name not in ("", "..") else self.target.resolve()
        return self.mtp_target or target.parent / f"{target.name}-mtp"


def convert(
    source: Annotated[
        Path, typer.Argument(help="Hugging Face directory or name, training checkpoint, Megatron's, or GGUF file.")
    ],
    target: Annotated[Path, typer.Argument(help="Directory to write, or GGUF file; must not exist.")],
    to: Annotated[str, typer.Option(help="safetensors, training, megatron or gguf.")] = "safetensors",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16, float8; int8, int4 or mixed (4 bits, the head 8), prepared for CPUs, where "
            "int4,head=int8 and the like give kinds of matrices (head, attention, experts, dense) formats of their "
            "own; for GGUF float16, q8_0, q4_0; "
            "left out: bfloat16, or as stored for training."
        ),
    ] = None,
    force_bf16: Annotated[bool, typer.Option("--force-bf16", help="Same as --dtype bfloat16.")] = False,
    force_fp8: Annotated[bool, typer.Option("--force-fp8", help="Same as --dtype float8.")] = False,
    fp8_scales: Annotated[
        str | None,
        typer.Option(
            help="Of float8: published, pow2 or fp32; left out: as they are in an FP8 source, published from others.",
            show_default=False,
        ),
    ] = None,
    mtp: Annotated[
        str, typer.Option(help="keep, drop, or separate: into TARGET-mtp, a directory of its own.")
    ] = "keep",
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer to put beside the weights.")] = None,
    max_shard_size: Annotated[float | None, typer.Option(help=MAX_SHARD_SIZE_HELP, show_default=False)] = None,
    workers: Annotated[int, typer.Option(min=1, help="Files written at the same time.")] = 1,
    verify: Annotated[bool, typer.Option("--verify", help="Read the target back and compare every tensor.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
) -> None:
    """Convert a checkpoint: Hugging Face safetensors, ling's own, Megatron torch_dist; any to any, or to GGUF."""
    if force_bf16 and force_fp8:
        raise ConfigError("--force-bf16 and --force-fp8 exclude each other")
    forced = "bfloat16" if force_bf16 else "float8" if force_fp8 else None
    if forced is not None and dtype not in (None, forced):
        raise ConfigError(f"--dtype {dtype} contradicts --force-{'bf16' if force_bf16 else 'fp8'}")
    asked = Conversion(
        source=source, target=target, to=to, dtype=forced or dtype, fp8_scales=fp8_scales, mtp=mtp, tokenizer=tokenizer,
        max_shard_gb=max_shard_size, workers=workers, verify=verify, dry_run=dry_run, overwrite=overwrite,
    )  # fmt: skip
    run_conversion(asked)


def run_conversion(asked: Conversion, source: "PieceSource | None" = None) -> None:
    """Convert `source`, or what lies at `asked.source`, with a progress bar.

    Shared with `ling merge` and the published scripts' command lines.
    """
    _check(asked)
    from ling.checkpoint import convert
    from ling.checkpoint.hub import resolve_checkpoint
    from ling.checkpoint.pieces import open_pieces
    from ling.checkpoint.save import ExportFormat

    source = source or open_pieces(resolve_checkpoint(asked.source), asked.tokenizer)
    precision = "bfloat16" if asked.to == "gguf" or asked.packed else asked.dtype or "bfloat16"
    export = ExportFormat(precision=precision, fp8_scales=asked.fp8_scales)  # type: ignore[arg-type]
    _check_targets(asked, source)
    if asked.dry_run:
        return _describe(asked, source, export)
    with ExitStack() as stack:
        if (target := asked.mtp_directory) is not None:
            with progress_bar(f"MTP layers to {target.name}") as progress:
                apart = convert.mtp_to_safetensors(source, target, export, overwrite=asked.overwrite, progress=progress)
                stack.enter_context(apart)
        _write(asked, source if asked.mtp == "keep" else convert.without_mtp(source), export)
    if asked.verify:
        _verify(asked, source, export)
    for path in (asked.mtp_directory, asked.target):
        if path is not None:
            print(path)


def _write(asked: Conversion, source: "PieceSource", export: "ExportFormat") -> None:
    import torch

    from ling.checkpoint import convert, gguf

    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(asked.dtype or "")
    with progress_bar(f"{source.kind} {asked.source.name} to {asked.packed or asked.to}") as progress:
        if asked.packed is not None:
            from ling.checkpoint.packing import read_weights
            from ling.checkpoint.prepare import to_packed

            to_packed(
                source, asked.target, read_weights(asked.packed), tokenizer=asked.tokenizer, overwrite=asked.overwrite,
                max_shard_bytes=_max_shard_bytes(asked), workers=asked.workers, progress=progress,
            )  # fmt: skip
        elif asked.to == "safetensors":
            convert.to_safetensors(
                source, asked.target, export, tokenizer=asked.tokenizer, overwrite=asked.overwrite,
                max_shard_bytes=_max_shard_bytes(asked), workers=asked.workers, progress=progress,
            )  # fmt: skip
        elif asked.to == "gguf":
            gguf.to_gguf(
                source, asked.target, _gguf_type(asked),
                tokenizer=asked.tokenizer, overwrite=asked.overwrite, progress=progress,
            )  # fmt: skip
        elif asked.to == "training":
            convert.to_training(
                source, asked.target, dtype, tokenizer=asked.tokenizer, overwrite=asked.overwrite,
                workers=asked.workers, progress=progress,
            )  # fmt: skip
        else:
            convert.to_megatron(
                source, asked.target, dtype or torch.bfloat16,
                tokenizer=asked.tokenizer, overwrite=asked.overwrite, workers=asked.workers, progress=progress,
            )  # fmt: skip


def _verify(asked: Conversion, source: "PieceSource", export: "ExportFormat") -> None:
    from ling.checkpoint import convert, gguf

    count = 0 if asked.mtp_directory is None else convert.verify_mtp(source, asked.mtp_directory, export)
    if asked.mtp != "keep":
        source = convert.without_mtp(source)
    with progress_bar(f"verifying {asked.target.name}") as progress:
        if asked.packed is not None:
            from ling.checkpoint.packing import read_weights
            from ling.checkpoint.prepare import verify_packed

            count += verify_packed(source, asked.target, read_weights(asked.packed), progress)
        elif asked.to == "gguf":
            count += gguf.verify_gguf(source, asked.target, _gguf_type(asked), progress)
        else:
            form = export if asked.to == "safetensors" else None
            count += convert.verify(source, asked.target, form, progress, workers=asked.workers)
    Console(stderr=True).print(f"{count:,} tensors compared: what was read is what was written")


def _check_targets(asked: Conversion, source: "PieceSource") -> None:
    """Refuse targets that are taken before anything is written."""
    from ling.checkpoint import convert, gguf

    if asked.to == "gguf":
        gguf.check_gguf_target(source, asked.target, overwrite=asked.overwrite)
    else:
        convert.check_target(source, asked.target, overwrite=asked.overwrite)
    if (apart := asked.mtp_directory) is None:
        return
    convert.mtp_pieces(source)
    convert.check_target(source, apart, overwrite=asked.overwrite)
    one, other = asked.target.resolve(), apart.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise ConfigError(
            f"the MTP layers' directory {apart} and {asked.target} must lie apart; choose another for one"
        )


def _max_shard_bytes(asked: Conversion) -> int:
    return int((asked.max_shard_gb or _SHARD_GB) * 1e9)


def _gguf_type(asked: Conversion) -> "GgufType":
    return asked.dtype or "bfloat16"  # type: ignore[return-value]


def _describe(asked: Conversion, source: "PieceSource", export: "ExportFormat") -> None:
    from ling.checkpoint.convert import files_beside
    from ling.checkpoint.names import published_pieces
    from ling.scaling.parameters import count_parameters

    config = source.config if asked.mtp == "keep" else source.config.without_mtp()
    counts = count_parameters(config)
    print(f"source:  {source.kind} {source.directory}")
    print(f"target:  {asked.to} {asked.target}{' (replaced)' if asked.target.exists() else ''}")
    if asked.mtp_directory is not None:
        print(f"apart:   MTP layers to {asked.mtp_directory}")
    print(f"model:   {counts.total_with_mtp:,} parameters, {config.num_nextn_predict_layers} MTP layers")
    print(f"tensors: {len(published_pieces(config)):,} published ones")
    if asked.packed is not None:
        from ling.checkpoint.packing import formats_told, read_weights
        from ling.checkpoint.prepared import packed_bytes

        weights = read_weights(asked.packed)
        print(f"format:  {formats_told(weights)}, prepared for CPUs, {packed_bytes(config, weights) / 1e9:.3f} GB")
    elif asked.to == "safetensors":
        print(f"format:  {export.precision}, {export.num_bytes(config) / 1e9:.3f} GB")
    if asked.to == "gguf":
        from ling.checkpoint.gguf import plan_gguf, tokenizer_directory

        tensors = plan_gguf(config, _gguf_type(asked), str(source.directory))
        kinds = Counter(tensor.stored for tensor in tensors)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        print(f"format:  {sum(tensor.nbytes for tensor in tensors) / 1e9:.3f} GB in {told} tensors")
        print(f"within:  the tokenizer of {tokenizer_directory(source, asked.tokenizer)}")
        return
    names = [file.name for file in files_beside(source, asked.tokenizer)]
    print(f"beside:  {', '.join(names) or 'no tokenizer'}")


def _check(asked: Conversion) -> None:
    given = {
        "--to": asked.to, "--dtype": asked.dtype, "--fp8-scales": asked.fp8_scales, "--mtp": asked.mtp,
    }  # fmt: skip
    if asked.packed is not None:
        _check_packed(asked)
        given["--dtype"] = None
    for name, value in given.items():
        if value is not None and value not in _KNOWN[name]:
            raise ConfigError(f"{name} {value} is not known; use {', '.join(_KNOWN[name])}")
    if asked.to != "safetensors" and asked.dtype == "float8":
        raise ConfigError(f"--to {asked.to} holds no FP8 blocks; use --dtype bfloat16 or float32")
    if asked.to != "gguf" and asked.dtype in _GGUF_ONLY:
        raise ConfigError(f"--dtype {asked.dtype} is for --to gguf")
    if asked.to == "gguf":
        _check_gguf(asked)
    elif asked.target.suffix == ".gguf":
        raise ConfigError(f"{asked.target} is named as a GGUF file; add --to gguf, or name a directory")
    if asked.fp8_scales is not None and asked.dtype != "float8":
        raise ConfigError(f"--fp8-scales {asked.fp8_scales} is for --dtype float8")
    if (size := asked.max_shard_gb) is not None:
        if asked.to != "safetensors":
            raise ConfigError(f"--max-shard-size is for shards of safetensors; --to {asked.to} has none")
        if not 0 < size < _LARGEST_SHARD_GB:
            raise ConfigError(f"--max-shard-size must be a positive number of GB below 1e9, got {size:g}")
    if asked.tokenizer is not None and not asked.tokenizer.is_dir():
        raise ConfigError(f"tokenizer {asked.tokenizer} is not a directory")


def _check_packed(asked: Conversion) -> None:
    from ling.checkpoint.packing import read_weights

    read_weights(asked.packed or "")
    if asked.to != "safetensors":
        raise ConfigError(f"--dtype {asked.packed} is a form of safetensors; --to {asked.to} has none like it")
    if asked.mtp == "separate":
        raise ConfigError(f"--dtype {asked.packed} holds MTP layers with the others; use --mtp keep or drop")


def _check_gguf(asked: Conversion) -> None:
    if asked.target.suffix != ".gguf":
        raise ConfigError(f"--to gguf writes one file: name it {asked.target}.gguf")
    if asked.mtp == "separate":
        raise ConfigError("--to gguf holds MTP layers in the same file; use --mtp keep or drop")
    if asked.workers != 1:
        raise ConfigError("--workers is for files written at the same time; --to gguf writes one")
