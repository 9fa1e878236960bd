"""`ling bench latency`: how long one batch takes, and how near its steps come to what the memory gives."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ling.cli.bench.report import Grid, check_writable, describe_machine, print_report, save_result
from ling.cli.progress import progress_bar
from ling.config.engine import Drafting
from ling.errors import RequestError

if TYPE_CHECKING:
    from ling.cli.bench.offline import Run
    from ling.engine.llm import LLM

_PERCENTILES = (10.0, 25.0, 50.0, 75.0, 90.0, 99.0)


def latency(
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint directory or a hub's name; left out: the bundled model.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts that run together.")] = 1,
    input_len: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 32,
    output_len: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 128,
    num_iters: Annotated[int, typer.Option(min=1, help="Batches that are measured.")] = 5,
    num_iters_warmup: Annotated[int, typer.Option(min=0, help="Batches before them.")] = 1,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16.")] = "auto",
    drafting: Annotated[Drafting, typer.Option(help="Who proposes tokens; random prompts are hard to guess.")] = "none",
    num_speculative_tokens: Annotated[int, typer.Option(min=0, max=16, help="Most proposed per step.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    output_json: Annotated[Path | None, typer.Option(help="Write the numbers to this file.")] = None,
) -> None:
    """Time batches of random prompts, each new, on an engine of its own."""
    from ling.cli.bench.offline import open_llm, random_requests, run_requests

    check_writable(output_json)
    llm = open_llm(
        model, dtype=dtype, drafting=drafting, num_speculative_tokens=num_speculative_tokens,
        max_num_seqs=batch_size, enable_prefix_caching=False,
    )  # fmt: skip
    runs: list[Run] = []
    with progress_bar("batches") as progress:
        for index in range(num_iters_warmup + num_iters):
            requests = random_requests(
                llm, batch_size, input_len=input_len, output_len=output_len, seed=seed + index
            )  # fmt: skip
            run = run_requests(llm.engine, requests, f"batch-{index}")
            if run.failed:
                raise RequestError(f"{run.failed} of {batch_size} answers failed; --verbose says why")
            runs += [run] if index >= num_iters_warmup else []
            progress(len(runs), num_iters)
    numbers = _numbers(llm, runs, batch_size, input_len, output_len)
    settings = {
        "model": str(model or "bundled"), "batch_size": batch_size, "input_len": input_len, "output_len": output_len,
        "dtype": str(llm.engine.sizes.dtype)[6:], "drafting": llm.engine.drafting, "seed": seed,
    }  # fmt: skip
    machine = describe_machine(with_torch=True)
    save_result(output_json, numbers, settings, machine)
    title = f"{batch_size} x ({input_len} + {output_len}) tokens, {settings['dtype']}, drafting {settings['drafting']}"
    seconds = [f"{value:.3f}" for value in (numbers["avg_latency"], *numbers["percentiles"].values())]
    grid = Grid(["mean", *(f"p{p}" for p in numbers["percentiles"])], [("seconds per batch", seconds)])
    print_report(title, _rows(numbers), machine, _notes(numbers), grid)


def _numbers(llm: "LLM", runs: "list[Run]", batch_size: int, input_len: int, output_len: int) -> dict[str, Any]:
    import numpy as np

    from ling.cli.bench.traffic import measure_bandwidth, step_bytes

    seconds = [run.seconds for run in runs]
    mean = sum(seconds) / len(seconds)
    decode = sum(run.decode_seconds for run in runs)
    steps = sum(run.decode_steps for run in runs)
    numbers: dict[str, Any] = {
        "avg_latency": mean,
        "latencies": seconds,
        "percentiles": {f"{p:g}": float(np.percentile(seconds, p)) for p in _PERCENTILES},
        "output_tokens_per_second": batch_size * output_len / mean,
        "decode_tokens_per_second": sum(run.decode_tokens for run in runs) / decode,
        "decode_step_ms": 1e3 * decode / steps,
        "drafted": llm.engine.stats.drafted,
        "acceptance_fraction": llm.engine.stats.acceptance_fraction,
    }
    if llm.engine.drafting != "none":
        return numbers
    read = step_bytes(llm.engine, batch_size, input_len + output_len / 2)
    measured = measure_bandwidth(llm.engine.sizes.device)
    limit = measured.bytes_per_second
    rate = read.total * steps / decode
    return numbers | {
        "step_weight_bytes": read.weights,
        "step_cache_bytes": read.cache,
        "experts_per_layer": read.experts,
        "gb_per_second": rate / 1e9,
        "memory_gb_per_second": limit / 1e9,
        "memory_measured_by": measured.by,
        "memory_percent": 100 * rate / limit,
    }


def _rows(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("output tokens per second", f"{numbers['output_tokens_per_second']:,.1f}"),
        ("the same after the first token", f"{numbers['decode_tokens_per_second']:,.1f}"),
        ("milliseconds per decoding step", f"{numbers['decode_step_ms']:.2f}"),
    ]
    if "gb_per_second" not in numbers:
        return [*rows, ("drafts accepted", f"{100 * numbers['acceptance_fraction']:.0f} % of {numbers['drafted']:,}")]
    weights, cache = numbers["step_weight_bytes"] / 1e6, numbers["step_cache_bytes"] / 1e6
    return [
        *rows,
        ("MB read per step", f"{weights:,.1f} weights + {cache:,.2f} cache"),
        ("GB per second", f"{numbers['gb_per_second']:.2f}"),
        ("per cent of the memory's rate", f"{numbers['memory_percent']:.1f}"),
    ]


def _notes(numbers: dict[str, Any]) -> list[str]:
    if "gb_per_second" not in numbers:
        return ["bytes per step are told with --drafting none"]
    notes = [
        f"memory: {numbers['memory_gb_per_second']:.2f} GB/s, measured here by a {numbers['memory_measured_by']}; "
        f"a step reads {numbers['experts_per_layer']:.1f} experts per layer if rows choose evenly"
    ]
    if numbers["step_weight_bytes"] < 256e6:
        notes.append("the weights may fit into the processor's caches, whose rate is not the memory's")
    return notes
