"""`ling convert`: any checkpoint becomes any other."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ling.errors import ConfigError

if TYPE_CHECKING:
    from ling.checkpoint.convert import Progress as Advance

TARGETS = ("safetensors", "training", "megatron")
DTYPES = ("float32", "bfloat16", "float8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What `ling convert` and the published scripts are asked for."""

    source: Path
    target: Path
    to: str = "safetensors"
    dtype: str | None = None
    fp8_scales: str = "published"
    mtp: bool = True
    tokenizer: Path | None = None
    max_shard_gb: float = 5.0
    overwrite: bool = False


def convert(
    source: Annotated[Path, typer.Argument(help="Hugging Face directory, training checkpoint, or Megatron's.")],
    target: Annotated[Path, typer.Argument(help="Directory to write; must not exist.")],
    to: Annotated[str, typer.Option(help="safetensors, training or megatron.")] = "safetensors",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float8; left out: bfloat16, or as stored for training.")
    ] = None,
    force_bf16: Annotated[bool, typer.Option("--force-bf16", help="Same as --dtype bfloat16.")] = False,
    force_fp8: Annotated[bool, typer.Option("--force-fp8", help="Same as --dtype float8.")] = False,
    fp8_scales: Annotated[str, typer.Option(help="published, pow2 or fp32.")] = "published",
    mtp: Annotated[bool, typer.Option(help="Keep MTP layers.")] = True,
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer directory to put beside the weights.")] = None,
    max_shard_gb: Annotated[float, typer.Option(help="Largest file, in GB of 10^9 bytes.")] = 5.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing target.")] = False,
) -> None:
    """Convert a checkpoint: Hugging Face safetensors, ling's training checkpoints, Megatron torch_dist; any to any."""
    if force_bf16 and force_fp8:
        raise ConfigError("--force-bf16 and --force-fp8 exclude each other")
    forced = "bfloat16" if force_bf16 else "float8" if force_fp8 else None
    if forced is not None and dtype not in (None, forced):
        raise ConfigError(f"--dtype {dtype} contradicts --force-{'bf16' if force_bf16 else 'fp8'}")
    asked = Conversion(
        source=source, target=target, to=to, dtype=forced or dtype, fp8_scales=fp8_scales, mtp=mtp,
        tokenizer=tokenizer, max_shard_gb=max_shard_gb, overwrite=overwrite,
    )  # fmt: skip
    run_conversion(asked)


def run_conversion(asked: Conversion) -> None:
    """Convert with a progress bar; shared with the published scripts' command lines."""
    _check(asked)
    import torch

    from ling.checkpoint import convert
    from ling.checkpoint.pieces import open_pieces
    from ling.checkpoint.save import ExportFormat

    pieces = open_pieces(asked.source)
    if not asked.mtp:
        pieces = convert.without_mtp(pieces)
    dtype = None if asked.dtype is None else getattr(torch, asked.dtype, None)
    with _progress(f"{pieces.kind} {asked.source.name} to {asked.to}") as progress:
        if asked.to == "safetensors":
            export = ExportFormat(precision=asked.dtype or "bfloat16", fp8_scales=asked.fp8_scales)  # type: ignore[arg-type]
            convert.to_safetensors(
                pieces, asked.target, export, tokenizer=asked.tokenizer, overwrite=asked.overwrite,
                max_shard_bytes=int(asked.max_shard_gb * 1e9), progress=progress,
            )  # fmt: skip
        elif asked.to == "training":
            convert.to_training(
                pieces, asked.target, dtype,
                tokenizer=asked.tokenizer, overwrite=asked.overwrite, progress=progress,
            )  # fmt: skip
        else:
            convert.to_megatron(
                pieces, asked.target, dtype or torch.bfloat16,
                tokenizer=asked.tokenizer, overwrite=asked.overwrite, progress=progress,
            )  # fmt: skip
    print(asked.target)


def _check(asked: Conversion) -> None:
    for name, value, known in (
        ("--to", asked.to, TARGETS),
        ("--dtype", asked.dtype or DTYPES[0], DTYPES),
        ("--fp8-scales", asked.fp8_scales, _scale_modes()),
    ):
        if value not in known:
            raise ConfigError(f"{name} {value} is not known; use {', '.join(known)}")
    if asked.to != "safetensors" and asked.dtype == "float8":
        raise ConfigError(f"--to {asked.to} holds no FP8 blocks; use --dtype bfloat16 or float32")
    if not asked.max_shard_gb > 0:
        raise ConfigError(f"--max-shard-gb must be positive, got {asked.max_shard_gb}")
    if asked.tokenizer is not None and not asked.tokenizer.is_dir():
        raise ConfigError(f"--tokenizer {asked.tokenizer} is not a directory")


def _scale_modes() -> tuple[str, ...]:
    from ling.checkpoint.save import ScaleMode

    return get_args(ScaleMode)


@contextmanager
def _progress(description: str) -> Iterator["Advance"]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
