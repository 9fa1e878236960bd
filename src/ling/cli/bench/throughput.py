"""`ling bench throughput`: how many requests and tokens a second, with everything handed over at once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ling.cli.bench.report import check_writable, describe_machine, print_report, save_result
from ling.cli.progress import progress_bar
from ling.config.engine import Drafting
from ling.errors import RequestError

if TYPE_CHECKING:
    from ling.cli.bench.offline import Request
    from ling.engine.llm import LLM


def throughput(
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint directory or a hub's name; left out: the bundled model.")
    ] = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="Requests.")] = 100,
    input_len: Annotated[int, typer.Option(min=1, help="Tokens of each random prompt.")] = 128,
    output_len: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 64,
    random_range_ratio: Annotated[float, typer.Option(min=0, max=1, help="Lengths vary by this fraction.")] = 0.0,
    input: Annotated[
        Path | None, typer.Option(help="jsonl with prompt or messages, perhaps max_tokens, in place of random ones.")
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Most answers at once.")] = 64,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16.")] = "auto",
    drafting: Annotated[Drafting, typer.Option(help="Who proposes tokens: auto, mtp, ngram or none.")] = "none",
    num_speculative_tokens: Annotated[int, typer.Option(min=0, max=16, help="Most proposed per step.")] = 3,
    enable_prefix_caching: Annotated[bool, typer.Option(help="Keep what prompts begin with.")] = False,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    output_json: Annotated[Path | None, typer.Option(help="Write the numbers to this file.")] = None,
) -> None:
    """Run many requests on an engine of its own; answers have their full length."""
    from ling.cli.bench.offline import open_llm, random_requests, run_requests

    check_writable(output_json)
    llm = open_llm(
        model, dtype=dtype, drafting=drafting, num_speculative_tokens=num_speculative_tokens,
        max_num_seqs=max_num_seqs, enable_prefix_caching=enable_prefix_caching,
    )  # fmt: skip
    lengths = {"input_len": input_len, "output_len": output_len}
    if input is not None:
        requests = _read(llm, input, num_prompts, output_len)
    else:
        requests = random_requests(llm, num_prompts, range_ratio=random_range_ratio, seed=seed, **lengths)
    with progress_bar("requests") as progress:
        run = run_requests(llm.engine, requests, "request", done=lambda count: progress(count, num_prompts))
    if run.failed:
        raise RequestError(f"{run.failed} of {num_prompts} answers failed; --verbose says why")
    prompt_tokens, stats = sum(len(ids) for ids, _ in requests), llm.engine.stats
    numbers = {
        "elapsed_time": run.seconds,
        "num_requests": num_prompts,
        "total_num_tokens": prompt_tokens + run.tokens,
        "total_output_tokens": run.tokens,
        "requests_per_second": num_prompts / run.seconds,
        "tokens_per_second": (prompt_tokens + run.tokens) / run.seconds,
        "output_tokens_per_second": run.tokens / run.seconds,
        "steps": stats.steps,
        "preemptions": stats.preemptions,
        "cached_tokens": stats.cached_tokens,
        "acceptance_fraction": stats.acceptance_fraction,
    }
    settings = {
        "model": str(model or "bundled"), "input": str(input) if input else "random", **lengths,
        "max_num_seqs": max_num_seqs, "dtype": str(llm.engine.sizes.dtype)[6:], "drafting": llm.engine.drafting,
        "enable_prefix_caching": enable_prefix_caching, "seed": seed,
    }  # fmt: skip
    machine = describe_machine(with_torch=True)
    save_result(output_json, numbers, settings, machine)
    rows = [
        ("requests per second", f"{numbers['requests_per_second']:,.2f}"),
        ("all tokens per second", f"{numbers['tokens_per_second']:,.1f}"),
        ("output tokens per second", f"{numbers['output_tokens_per_second']:,.1f}"),
        ("seconds", f"{run.seconds:,.2f}"),
        ("tokens of prompts and answers", f"{prompt_tokens:,} + {run.tokens:,}"),
        ("steps", f"{stats.steps:,}"),
        ("preemptions", f"{stats.preemptions:,}"),
    ]
    if stats.drafted:
        rows.append(("drafts accepted", f"{100 * stats.acceptance_fraction:.0f} % of {stats.drafted:,}"))
    title = f"{num_prompts} requests, {max_num_seqs} at once, {settings['dtype']}, drafting {settings['drafting']}"
    print_report(title, rows, machine, [])


def _read(llm: "LLM", file: Path, count: int, output_len: int) -> "list[Request]":
    from ling.cli.bench.prompts import read_prompts
    from ling.engine.request import SamplingParams

    requests: list[Request] = []
    for prompt in read_prompts(file, count, output_len):
        content = prompt.content
        if isinstance(content, str):
            ids = llm.tokenizer.encode(content)
        elif isinstance(content[0], int):
            ids = [i for i in content if isinstance(i, int)]
        else:
            ids = llm.chat_prompt([m for m in content if not isinstance(m, int)])
        params = SamplingParams(max_tokens=prompt.output_tokens, temperature=0, ignore_eos=True)
        llm.engine.check(ids, params)
        requests.append((ids, params))
    return requests
