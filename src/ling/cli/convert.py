"""`ling convert`: a training checkpoint becomes a published one."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ling.errors import ConfigError


def convert(
    source: Annotated[Path, typer.Argument(help="Training checkpoint: a step_N or final directory.")],
    target: Annotated[Path, typer.Argument(help="Directory to write; must not exist.")],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float8.")] = "bfloat16",
    force_bf16: Annotated[bool, typer.Option(help="Same as --dtype bfloat16.")] = False,
    force_fp8: Annotated[bool, typer.Option(help="Same as --dtype float8.")] = False,
    fp8_scales: Annotated[str, typer.Option(help="published, pow2 or fp32.")] = "published",
    mtp: Annotated[bool, typer.Option(help="Keep MTP layers.")] = True,
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer directory to put beside the weights.")] = None,
    max_shard_gb: Annotated[float, typer.Option(help="Largest file, in GB of 10^9 bytes.")] = 5.0,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing target.")] = False,
) -> None:
    """Convert a training checkpoint to Hugging Face safetensors (FP32, BF16 or FP8 blocks)."""
    if force_bf16 and force_fp8:
        raise ConfigError("--force-bf16 and --force-fp8 exclude each other")
    wanted = "bfloat16" if force_bf16 else "float8" if force_fp8 else dtype
    run_conversion(source, target, wanted, fp8_scales, mtp, tokenizer, max_shard_gb, overwrite)


def run_conversion(
    source: Path,
    target: Path,
    dtype: str,
    fp8_scales: str,
    mtp: bool,
    tokenizer: Path | None,
    max_shard_gb: float,
    overwrite: bool,
) -> None:
    """Convert with a progress bar; shared with the published script's command line."""
    from typing import get_args

    from ling.checkpoint.convert import convert_dcp
    from ling.checkpoint.save import ExportFormat, Precision, ScaleMode

    for name, value, known in (
        ("--dtype", dtype, get_args(Precision)),
        ("--fp8-scales", fp8_scales, get_args(ScaleMode)),
    ):
        if value not in known:
            raise ConfigError(f"{name} {value} is not known; use {', '.join(known)}")
    if max_shard_gb <= 0:
        raise ConfigError(f"--max-shard-gb must be positive, got {max_shard_gb}")
    if tokenizer is not None and not tokenizer.is_dir():
        raise ConfigError(f"--tokenizer {tokenizer} is not a directory")
    export = ExportFormat(precision=dtype, fp8_scales=fp8_scales)  # type: ignore[arg-type]
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"{source.name} to {dtype}", total=None)
        convert_dcp(
            source, target, export, tokenizer=tokenizer, mtp=mtp, overwrite=overwrite,
            max_shard_bytes=int(max_shard_gb * 1e9),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    print(target)
