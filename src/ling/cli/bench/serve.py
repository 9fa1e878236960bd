"""`ling bench serve`: the times and rates of a server, ours or another."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ling.cli.bench.prompts import DatasetName, Prompt, RandomPrompts, read_prompts
from ling.cli.bench.report import check_writable, describe_machine, metric_grid, print_report, save_result
from ling.cli.progress import progress_bar
from ling.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from ling.cli.bench.client import Client
    from ling.cli.bench.load import Ask, Outcome

_OWN_FIELDS = ("model", "prompt", "messages", "stream", "stream_options", "max_tokens")


def serve(
    base_url: Annotated[str | None, typer.Option(help="Address of the server; in place of --host and --port.")] = None,
    host: Annotated[str, typer.Option(help="Where the server is.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    endpoint: Annotated[str, typer.Option(help="/v1/completions or /v1/chat/completions.")] = "/v1/completions",
    model: Annotated[str | None, typer.Option(help="Its name there; left out: the first of /v1/models.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Sent as a bearer token.")] = None,
    dataset_name: Annotated[DatasetName, typer.Option(help="What prompts are made of.")] = "random",
    dataset_path: Annotated[
        Path | None, typer.Option(help="Of jsonl: records with prompt or messages, perhaps max_tokens.")
    ] = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="Requests to send.")] = 100,
    random_input_len: Annotated[int, typer.Option(min=1, help="Tokens of a prompt; in text, words.")] = 256,
    random_output_len: Annotated[int, typer.Option(min=1, help="max_tokens of a request.")] = 128,
    random_range_ratio: Annotated[float, typer.Option(min=0, max=1, help="Lengths vary by this fraction.")] = 0.0,
    random_prefix_len: Annotated[int, typer.Option(min=0, help="Tokens that all prompts begin with.")] = 0,
    vocab_size: Annotated[int, typer.Option(min=2, help="Random token ids are drawn below it.")] = 1024,
    request_rate: Annotated[float, typer.Option(help="Requests per second, a Poisson process; inf: all at once.")] = (
        float("inf")
    ),
    max_concurrency: Annotated[int | None, typer.Option(min=1, help="Most requests at once.")] = None,
    num_warmups: Annotated[int, typer.Option(min=1, help="Requests before the clock starts.")] = 1,
    seed: Annotated[int, typer.Option(help="Of prompts and arrivals.")] = 0,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Every answer has its full length.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Left out: the server's own.")] = None,
    extra_body: Annotated[str | None, typer.Option(help="JSON object, added to every request.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds of silence after which a request failed.")] = 600.0,
    percentile_metrics: Annotated[str, typer.Option(help="Which of ttft, tpot, itl, e2el.")] = "ttft,tpot,itl,e2el",
    metric_percentiles: Annotated[str, typer.Option(help="Percentiles of them.")] = "99",
    save_result_to: Annotated[
        Path | None, typer.Option("--save-result", "--output-json", help="Write the numbers to this JSON file.")
    ] = None,
    save_detailed: Annotated[bool, typer.Option("--save-detailed", help="With each request's own.")] = False,
) -> None:
    """Send requests to an OpenAI server, stream the answers, and time them."""
    from ling.cli.bench.client import Client
    from ling.cli.bench.figures import METRICS, figures, read_metrics, read_percentiles
    from ling.cli.bench.load import Ask, Load
    from ling.cli.bench.probe import first_model

    metrics, percentiles = read_metrics(percentile_metrics), read_percentiles(metric_percentiles)
    check_writable(save_result_to)
    if not request_rate > 0:
        raise ConfigError(f"--request-rate must be above 0, got {request_rate:g}")
    if (dataset_name == "jsonl") != (dataset_path is not None):
        raise ConfigError("--dataset-name jsonl and --dataset-path FILE go together")
    client = Client(
        base_url or f"http://{f'[{host}]' if ':' in host else host}:{port}", api_key=api_key, timeout=timeout
    )
    fields: dict[str, Any] = {"temperature": temperature} if temperature is not None else {}
    fields |= ({"ignore_eos": True} if ignore_eos else {}) | _extra(extra_body)
    ask = Ask(model=model or first_model(client), path=endpoint, fields=fields)
    wanted = RandomPrompts(
        input_len=random_input_len, output_len=random_output_len, range_ratio=random_range_ratio,
        prefix_len=random_prefix_len, vocab_size=vocab_size, seed=seed,
    )  # fmt: skip
    prompts = _warm_up(client, ask, wanted, dataset_name, dataset_path, num_prompts, num_warmups)
    load = Load(client, ask, prompts)
    interrupted = False
    try:
        with progress_bar("requests") as progress:
            progress(0, num_prompts)
            load.run(rate=request_rate, max_concurrency=max_concurrency, seed=seed, progress=progress)
    except KeyboardInterrupt:
        interrupted = True
    numbers = figures(load.outcomes, load.seconds, percentiles) | {"max_concurrent_requests": load.most_at_once}
    settings = {
        "base_url": client.url, "endpoint": endpoint, "model_id": ask.model, "dataset_name": dataset_name,
        "num_prompts": num_prompts, "request_rate": "inf" if request_rate == float("inf") else request_rate,
        "max_concurrency": max_concurrency, "input_len": random_input_len, "output_len": random_output_len,
        "seed": seed, "fields": fields,
    }  # fmt: skip
    machine = describe_machine(with_torch=False)
    details = {"requests": [asdict(outcome) for outcome in load.outcomes]} if save_detailed else {}
    save_result(save_result_to, numbers | details, settings, machine)
    if not numbers["completed"] and not interrupted:
        raise RequestError(f"none of {num_prompts} requests succeeded: {next(iter(numbers['errors']), 'no reason')}")
    grid = metric_grid(numbers, {m: METRICS[m] for m in metrics}, percentiles)
    title = f"{ask.model} at {client.url}{endpoint}"
    print_report(title, _counts(numbers), machine, _notes(numbers, load.outcomes), grid)
    if interrupted:
        print("interrupted; these are the requests that were answered before", file=sys.stderr)
        raise typer.Exit(130)


def _warm_up(
    client: "Client", ask: "Ask", wanted: RandomPrompts, name: DatasetName, file: Path | None, count: int, warmups: int
) -> list[Prompt]:
    """Return the prompts to measure with, after `warmups` others, the first of which shows what the server takes."""
    from ling.cli.bench.load import Load
    from ling.cli.bench.probe import takes

    prompts = _make(wanted, name, file, warmups + count, as_text=ask.is_chat)
    if not takes(client, ask, prompts[0]):
        print("the server takes no token ids; prompts are random words instead", file=sys.stderr)
        prompts = _make(wanted, name, file, warmups + count, as_text=True)
    Load(client, ask, prompts[1:warmups]).run()
    return prompts[warmups:]


def _make(wanted: RandomPrompts, name: DatasetName, file: Path | None, count: int, *, as_text: bool) -> list[Prompt]:
    if file is not None:
        return list(read_prompts(file, count, wanted.output_len))
    if name == "books":
        return list(wanted.passages(count))
    return list(wanted.words(count) if as_text else wanted.ids(count))


def _extra(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--extra-body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError("--extra-body must be a JSON object")
    if own := [name for name in found if name in _OWN_FIELDS]:
        raise ConfigError(f"--extra-body cannot set {own[0]}, which has an option of its own or is what is measured")
    return found


def _counts(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("requests answered", f"{numbers['completed']:,}"),
        ("requests failed", f"{numbers['failed']:,}"),
        ("most at once", f"{numbers['max_concurrent_requests']:,}"),
        ("duration (s)", f"{numbers['duration']:,.2f}"),
        ("input tokens", f"{numbers['total_input_tokens']:,}"),
        ("output tokens", f"{numbers['total_output_tokens']:,}"),
        ("requests per second", f"{numbers['request_throughput']:,.2f}"),
        ("output tokens per second", f"{numbers['output_throughput']:,.1f}"),
        ("all tokens per second", f"{numbers['total_token_throughput']:,.1f}"),
    ]
    return rows + ([("requests unfinished", f"{numbers['unfinished']:,}")] if numbers["unfinished"] else [])


def _notes(numbers: dict[str, Any], outcomes: "list[Outcome]") -> list[str]:
    notes = [f"failed, {count} times: {reason}" for reason, count in numbers["errors"].items()]
    if numbers["tokens_counted_as_pieces"]:
        notes.append("the server tells no usage: its tokens are counted as pieces of the stream, prompts not at all")
    elif (pieces := sum(1 + len(o.gaps) for o in outcomes if o.done)) < numbers["total_output_tokens"]:
        per_piece = numbers["total_output_tokens"] / max(1, pieces)
        notes.append(f"a piece of the stream brings {per_piece:.2f} tokens on average; ITL is between pieces")
    return notes
