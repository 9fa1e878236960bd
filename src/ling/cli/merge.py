"""`ling merge`: checkpoints of one run become one model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ling.cli.convert import MAX_SHARD_SIZE_HELP, Conversion, run_conversion
from ling.errors import ConfigError


def merge(
    checkpoints: Annotated[list[Path], typer.Argument(help="Two or more of one model, oldest first; any kinds.")],
    out: Annotated[Path, typer.Option("--out", help="Directory to write, or GGUF file; must not exist.")],
    decay: Annotated[
        str | None,
        typer.Option(help="Decay to emulate: mean (left out), linear, cosine or 1-sqrt.", show_default=False),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="One weight per checkpoint instead, such as 1,1,2; scaled to sum to 1.")
    ] = None,
    to: Annotated[str, typer.Option(help="safetensors, training, megatron or gguf.")] = "safetensors",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float8; left out: bfloat16.")] = None,
    fp8_scales: Annotated[str | None, typer.Option(help="Of float8: published (left out), pow2 or fp32.")] = None,
    mtp: Annotated[str, typer.Option(help="keep or drop MTP layers, or separate: into OUT-mtp.")] = "keep",
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer to put beside the weights.")] = None,
    max_shard_size: Annotated[float | None, typer.Option(help=MAX_SHARD_SIZE_HELP, show_default=False)] = None,
    workers: Annotated[int, typer.Option(min=1, help="Files written at the same time.")] = 1,
    verify: Annotated[bool, typer.Option("--verify", help="Read the target back and compare every tensor.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
) -> None:
    """Merge checkpoints of one model into their weighted sum, as warm-up, stable, merge does for a decay."""
    if len(checkpoints) < 2:
        raise ConfigError("merging takes two checkpoints at least; give them oldest first")
    if decay is not None and weights is not None:
        raise ConfigError("--decay and --weights exclude each other")
    from ling.checkpoint.convert import without_mtp
    from ling.checkpoint.hub import resolve_checkpoint
    from ling.checkpoint.merge import MergedPieces, decay_weights, given_weights
    from ling.checkpoint.pieces import open_pieces

    count = len(checkpoints)
    shares = decay_weights(decay or "mean", count) if weights is None else given_weights(_numbers(weights), count)
    sources = [open_pieces(resolve_checkpoint(path), tokenizer) for path in checkpoints]
    source = MergedPieces([without_mtp(one) for one in sources] if mtp == "drop" else sources, shares)
    asked = Conversion(
        source=checkpoints[-1], target=out, to=to, dtype=dtype, fp8_scales=fp8_scales, mtp=mtp, tokenizer=tokenizer,
        max_shard_gb=max_shard_size, workers=workers, verify=verify, dry_run=dry_run, overwrite=overwrite,
    )  # fmt: skip
    told = Console(stderr=True, highlight=False, soft_wrap=True)
    for path, share in zip(checkpoints, shares):
        told.print(f"{share:8.4f}  {path}", markup=False)
    run_conversion(asked, source)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--weights {text} must be numbers with commas between, such as 1,1,2") from None
