"""`ling export`: hand a checkpoint over to vLLM, SGLang, LLaMA-Factory or transformers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ling.cli.progress import progress_bar
from ling.errors import ConfigError

if TYPE_CHECKING:
    from ling.checkpoint.shards import Shards
    from ling.compat.handover import Handover

_PROGRAMS = ("vllm", "sglang", "llamafactory")
_PRECISIONS = ("float32", "bfloat16", "float8")


def export(
    source: Annotated[
        Path, typer.Argument(help="Hugging Face directory or name, training checkpoint, Megatron's, or GGUF file.")
    ],
    target: Annotated[
        Path | None, typer.Argument(help="Directory to write; must not exist.", show_default=False)
    ] = None,
    program: Annotated[
        str | None, typer.Option("--for", help="vllm, sglang or llamafactory.", show_default=False)
    ] = None,
    hf_code: Annotated[
        bool,
        typer.Option(
            "--hf-code", help="Add code that transformers runs without ling; with --for to TARGET, else to SOURCE."
        ),
    ] = False,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float8; left out: as stored, where that is one of them.")
    ] = None,
    tensor_parallel_size: Annotated[int, typer.Option(help="Devices that share each layer.")] = 1,
    pipeline_parallel_size: Annotated[int, typer.Option(help="Stages that the layers are dealt out to.")] = 1,
    max_model_len: Annotated[
        int | None, typer.Option(help="Tokens of prompt and answer; left out: the model's context.", show_default=False)
    ] = None,
    yarn: Annotated[
        float | None, typer.Option(help="Stretch the context by this factor (4: 32K to 128K).", show_default=False)
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer to put beside the weights.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Files written at the same time.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
) -> None:
    """Write a checkpoint as vLLM, SGLang or LLaMA-Factory load it, and print the commands that start them.

    `ling export --hf-code DIR` puts code for transformers' `trust_remote_code=True` into a checkpoint as it lies there.
    """
    if program is None:
        if not hf_code:
            raise ConfigError(f"say what the directory is for: --for {', '.join(_PROGRAMS)}; or --hf-code")
        if target is not None:
            raise ConfigError(
                f"--hf-code alone adds to {source} itself and takes no second directory; see `ling convert`"
            )
        _add_code(source)
        return
    if target is None:
        raise ConfigError("name the directory to write: ling export --for PROGRAM SOURCE TARGET")
    if program not in _PROGRAMS:
        raise ConfigError(f"--for {program} is not known; use {', '.join(_PROGRAMS)}")
    if dtype is not None and dtype not in _PRECISIONS:
        raise ConfigError(f"--dtype {dtype} is not known; use {', '.join(_PRECISIONS)}")
    sizes = {
        "--tensor-parallel-size": tensor_parallel_size != 1, "--pipeline-parallel-size": pipeline_parallel_size != 1,
        "--max-model-len": max_model_len is not None,
    }  # fmt: skip
    if program == "llamafactory" and (given := [name for name, is_given in sizes.items() if is_given]):
        raise ConfigError(f"{given[0]} is for serving; LLaMA-Factory's recipes take their sizes from its own launcher")
    if tokenizer is not None and not tokenizer.is_dir():
        raise ConfigError(f"--tokenizer {tokenizer} is not a directory")
    from ling.checkpoint.hub import resolve_checkpoint
    from ling.checkpoint.pieces import open_pieces
    from ling.compat.handover import PROGRAMS, plan_handover, write_handover
    from ling.compat.serving import Serving

    serving = Serving(
        tensor_parallel_size=tensor_parallel_size, pipeline_parallel_size=pipeline_parallel_size,
        max_model_len=max_model_len, yarn=yarn,
    )  # fmt: skip
    plan = plan_handover(
        open_pieces(resolve_checkpoint(source)), program, str(target), dtype=dtype, serving=serving,  # type: ignore[arg-type]
        tokenizer=tokenizer, hf_code=hf_code,
    )  # fmt: skip
    with progress_bar(f"{source.name} for {PROGRAMS[program].NAME}") as progress:
        shards = write_handover(plan, target, overwrite=overwrite, workers=workers, progress=progress)
    stderr = Console(stderr=True, soft_wrap=True, highlight=False)
    stderr.print(f"weights: {_describe(plan, shards)}")
    stderr.print(f"checked against {PROGRAMS[program].NAME} {PROGRAMS[program].VERSION}")
    for note in plan.notes:
        stderr.print(f"note: {note}")
    print("\n".join(plan.launch))


def _add_code(directory: Path) -> None:
    from ling.checkpoint.pieces import open_pieces
    from ling.compat.hf import write_remote_code

    if (kind := open_pieces(directory).kind) != "safetensors":
        raise ConfigError(
            f"{directory} is a {kind} checkpoint, which transformers cannot load; "
            f"make one that it can: ling convert {directory} TARGET --to safetensors"
        )
    for path in write_remote_code(directory):
        print(path)


def _describe(plan: "Handover", shards: "Shards | None") -> str:
    if shards is None:
        return f"written as {plan.precision}"
    kept = [f"{count} {what}" for count, what in ((shards.linked, "linked"), (shards.copied, "copied")) if count]
    parts = [f"{plan.precision} as stored, files: {', '.join(kept) or 'none as they were'}"]
    if shards.cut:
        parts.append(f"{shards.cut} written again")
    if shards.left_out:
        parts.append(f"without {shards.left_out} tensors that the program does not take")
    return ", ".join(parts)
