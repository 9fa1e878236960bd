"""`ling generate`: one completion to stdout, or a file of prompts to a file of answers."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ling.errors import ConfigError

if TYPE_CHECKING:
    from ling.engine.llm import LLM
    from ling.engine.request import SamplingParams


def generate(
    prompt: Annotated[str | None, typer.Argument(help="Text; left out: read from stdin.")] = None,
    input: Annotated[
        Path | None, typer.Option(help="jsonl with prompt or messages on each line, perhaps id and sampling.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="jsonl of answers as they are done; what it answers already is left out.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Empty --output first.")] = False,
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint directory or a hub's name; left out: the bundled model.")
    ] = None,
    raw: Annotated[bool, typer.Option(help="Continue the text as it is, without the chat format.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0: always the most likely token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Only the k most likely tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Only the most likely tokens that hold this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Only tokens this fraction as likely as the likeliest; 0: all.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: tokens already there become rarer.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="End where this text appears; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same text; line i of --input has this plus i.")] = 0,
    n: Annotated[int, typer.Option(help="Of --input: answers to each line.")] = 1,
    logprobs: Annotated[int | None, typer.Option(help="Of --input: with so many likely tokens at each place.")] = None,
    drafts: Annotated[int, typer.Option(min=0, max=16, help="Most tokens proposed per step; 0: no drafting.")] = 3,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Of --input: most answers at once.")] = 64,
) -> None:
    """Answer one prompt, or continue raw text; or do so for every line of a file."""
    in_file = input is not None
    if in_file != (output is not None):
        raise ConfigError("--input and --output go together")
    if in_file and prompt is not None:
        raise ConfigError("a prompt and --input are two ways to ask; give one of them")
    if not in_file and (restart or n != 1 or logprobs is not None):
        raise ConfigError("--restart, --n and --logprobs need --input FILE --output FILE")
    text = "" if in_file else _one_prompt(prompt)
    from ling.cli.models import find_model, open_model, tell_apart
    from ling.engine.request import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop or ()),
        seed=seed,
        n=n,
        logprobs=logprobs,
    )
    if input is None or output is None:
        _print_answer(open_model(model, num_drafts=drafts, max_num_seqs=1), text, params, raw=raw)
        return
    from ling.cli.batch.command import generate_file

    generate_file(
        input,
        output,
        open_llm=lambda: open_model(model, num_drafts=drafts, max_num_seqs=max_num_seqs),
        params=params,
        raw=raw,
        model=lambda: tell_apart(find_model(model)),
        restart=restart,
    )


def _one_prompt(prompt: str | None) -> str:
    if prompt is None and sys.stdin.isatty():
        raise ConfigError("give a prompt as an argument or on stdin")
    text = prompt if prompt is not None else sys.stdin.read().removesuffix("\n")
    if not text:
        raise ConfigError("the prompt is empty; give some text as an argument or on stdin")
    return text


def _print_answer(llm: "LLM", text: str, params: "SamplingParams", *, raw: bool) -> None:
    tokens = llm.tokenizer.encode(text, special=False) if raw else llm.chat_prompt([{"role": "user", "content": text}])
    for delta in llm.stream(tokens, params):
        print(delta.text, end="", flush=True)
    print()
