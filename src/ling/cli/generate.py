"""`ling generate`: one completion to stdout."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ling.errors import ConfigError


def generate(
    prompt: Annotated[str | None, typer.Argument(help="Text; left out: read from stdin.")] = None,
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
    seed: Annotated[int, typer.Option(help="Same seed, same text.")] = 0,
    drafts: Annotated[int, typer.Option(min=0, max=16, help="Tokens the MTP layer drafts per step.")] = 1,
) -> None:
    """Answer one prompt, or continue raw text."""
    if prompt is None and sys.stdin.isatty():
        raise ConfigError("give a prompt as an argument or on stdin")
    text = prompt if prompt is not None else sys.stdin.read().removesuffix("\n")
    if not text:
        raise ConfigError("the prompt is empty; give some text as an argument or on stdin")
    from ling.cli.models import open_model
    from ling.engine.request import SamplingParams
    from ling.tokenizer import IncrementalDetokenizer

    llm = open_model(model, num_drafts=drafts)
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    tokens = llm.tokenizer.encode(text, special=False) if raw else llm.chat_prompt([{"role": "user", "content": text}])
    detokenizer = IncrementalDetokenizer(llm.tokenizer, skip_special=True)
    for token in llm.stream(tokens, params):
        print(detokenizer.push(token), end="", flush=True)
    print(detokenizer.finish())
