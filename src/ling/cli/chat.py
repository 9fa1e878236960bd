"""`ling chat`: a conversation in the terminal. Without a model it opens the one that comes with the package."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from ling.engine.llm import LLM

HELP = "/reset forgets the conversation, /quit ends"


def chat(
    model: Annotated[
        Path | None, typer.Argument(help="Checkpoint directory or a hub's name; left out: the bundled model.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0: always the most likely token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Same seed, same text.")] = 0,
    drafts: Annotated[int, typer.Option(min=0, max=16, help="Tokens the MTP layer drafts per step.")] = 1,
) -> None:
    """Talk to a model."""
    from ling.cli.models import open_model

    converse(open_model(model, num_drafts=drafts), max_tokens=max_tokens, temperature=temperature, seed=seed)


def converse(llm: "LLM", *, max_tokens: int = 256, temperature: float = 0.0, seed: int = 0) -> None:
    """Read lines and answer each, until the end of input."""
    from ling.engine.request import SamplingParams
    from ling.errors import LingError

    console = Console(highlight=False)
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    console.print(f"[dim]{HELP}[/]")
    history: list[dict[str, Any]] = []
    while True:
        try:
            line = console.input("[bold]you>[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/reset":
            history = []
        if not line or line == "/reset":
            continue
        history.append({"role": "user", "content": line})
        try:
            history.append({"role": "assistant", "content": _answer(llm, history, params, console)})
        except LingError as error:
            console.print(Text(f"{error} (/reset starts again)", style="red"))
            history.pop()
        except KeyboardInterrupt:
            console.print("[dim]stopped; the question is forgotten[/]")
            history.pop()


def _answer(llm: "LLM", history: list[dict[str, Any]], params: Any, console: Console) -> str:
    """Print the answer as it comes; return it."""
    from ling.tokenizer import IncrementalDetokenizer

    detokenizer = IncrementalDetokenizer(llm.tokenizer, skip_special=True)
    text = ""
    for token in llm.stream(llm.chat_prompt(history), params):
        piece = detokenizer.push(token)
        text += piece
        console.out(piece, end="")
    rest = detokenizer.finish()
    stats = llm.stats
    accepted = f", {100 * stats.acceptance_fraction:.0f} % of drafts accepted" if stats.drafted else ""
    console.out(rest)
    console.print(f"[dim]{stats.tokens} tokens, {stats.tokens_per_second:.0f} per second{accepted}[/]")
    return text + rest
