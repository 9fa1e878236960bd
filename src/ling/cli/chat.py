"""`ling chat`: a conversation in the terminal. Without a model it opens the one that comes with the package."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from ling.cli.talk.answer import Talker
    from ling.cli.talk.conversation import Conversation
    from ling.engine.llm import LLM


def chat(
    model: Annotated[
        Path | None, typer.Argument(help="Checkpoint directory or a hub's name; left out: the bundled model.")
    ] = None,
    system: Annotated[str, typer.Option(help="Instructions for the model, as /system gives them.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0: always the most likely token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Only the most likely tokens that hold this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed, same text.")] = 0,
    drafts: Annotated[int, typer.Option(min=0, max=16, help="Most tokens proposed per step; 0: no drafting.")] = 3,
    plain: Annotated[bool, typer.Option("--plain", help="Print answers as they are, not as markdown.")] = False,
    url: Annotated[str | None, typer.Option(help="Talk to a server of this address in place of a model.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Of --url: sent as a bearer token.")] = None,
) -> None:
    """Talk to a model."""
    from ling.errors import ConfigError

    if url is None and api_key is not None:
        raise ConfigError("--api-key belongs to --url")
    asked = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    if url is not None:
        from ling.cli.talk.remote import Server

        if model is not None:
            raise ConfigError("a model and --url are two ways to talk; give one of them")
        talk(Server(url, asked, api_key=api_key), system=system, plain=plain)
        return
    from ling.cli.models import open_model
    from ling.cli.talk.answer import Model
    from ling.engine.request import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    talk(Model(open_model(model, num_drafts=drafts, max_num_seqs=1), params), system=system, plain=plain)


def converse(llm: "LLM", *, max_tokens: int = 256, temperature: float = 0.0, seed: int = 0) -> None:
    """Talk to a model that is open already."""
    from ling.cli.talk.answer import Model
    from ling.engine.request import SamplingParams

    talk(Model(llm, SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)))


def talk(talker: "Talker", *, system: str = "", plain: bool = False) -> None:
    """Read messages and have each answered, until the end of input."""
    from ling.cli.talk.conversation import HINT, Conversation, QuitError
    from ling.errors import LingError

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  arrows and history for input()

    console = Console(highlight=False)
    conversation = Conversation(system)
    console.print(HINT, style="dim", markup=False)
    while True:
        try:
            said = _read()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        try:
            if said.startswith("/"):
                console.print(conversation.command(said.rstrip()), style="dim", markup=False)
            elif said.strip():
                _turn(talker, conversation, said.strip(), console, plain=plain or not console.is_terminal)
        except QuitError:
            return
        except LingError as error:
            console.print(Text(str(error), style="red"))


def _read() -> str:
    """Read a message: a line, and more of them while they end in a backslash."""
    lines = [input("you> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1].removesuffix("\\")
        lines.append(input("...> "))
    return "\n".join(lines)


def _turn(talker: "Talker", conversation: "Conversation", said: str, console: Console, *, plain: bool) -> None:
    """Answer `said`; both are kept, unless nothing came of it. Raises LingError."""
    from ling.cli.talk.show import MarkdownShow, PlainShow
    from ling.errors import RequestError

    asked = {"role": "user", "content": said}
    show = PlainShow(console) if plain else MarkdownShow(console)
    try:
        with show:
            answer = talker.ask([*conversation.messages, asked], show.push)
    except RequestError as error:
        raise RequestError(f"{error} (/reset starts again)") from None
    if answer.finish_reason is None and not answer.text:
        console.print("stopped before the answer began; the question is forgotten", style="dim")
        return
    conversation.turns += [asked, {"role": "assistant", "content": answer.text}]
    stopped = "stopped; " if answer.finish_reason is None else ""
    console.print(stopped + answer.describe(), style="dim")
