"""Flags that take several values: `--api-key a b`, as vLLM's are written, beside `--api-key a --api-key b`.

The command line's own parser takes one value for each flag, so blanks are turned into repetition before it reads.
"""

from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

from ling.cli.serve.flags import all_flags
from ling.errors import ConfigError

_MODEL_FLAGS = frozenset({"--model", "--model-path"})


class ServeCommand(TyperCommand):
    """`ling serve`, which reads both forms."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, repeated(args))


def repeated(line: Sequence[str]) -> list[str]:
    """Return `line` with each flag of several values repeated for each.

    What follows such a flag belongs to it only where the model is named elsewhere: in `--api-key KEY MODEL` the last
    word is the model. Raises ConfigError where it could be either.
    """
    several = {name for flag in all_flags() if flag.kind == list[str] for name in flag.spellings}
    single = {name for flag in all_flags() if flag.kind not in (bool, list[str]) for name in flag.spellings}
    single |= _MODEL_FLAGS
    pieces: list[list[str]] = []
    """A flag of several values with those that follow it; anything else as it stands."""
    names_model = False
    rest = list(line)
    while rest:
        word = rest.pop(0)
        piece = [word]
        if word == "--":
            names_model, piece, rest = names_model or bool(rest), [word, *rest], []
        elif word in several or word in single:
            piece += [rest.pop(0)] if rest else []
            while word in several and rest and not rest[0].startswith("-"):
                piece.append(rest.pop(0))
        names_model |= not word.startswith("-") or word.partition("=")[0] in _MODEL_FLAGS
        pieces.append(piece)
    follow = [] if names_model else [word for piece in pieces if piece[0] in several for word in piece[2:]]
    if len(follow) > 1:
        raise ConfigError(
            f"which of {', '.join(follow)} is the model? Name it first, as in ling serve MODEL --api-key A B"
        )
    if follow:  # it is the model
        return [word for piece in pieces for word in piece]
    return [word for piece in pieces for word in (_repeat(piece) if piece[0] in several else piece)]


def _repeat(piece: list[str]) -> list[str]:
    flag, *values = piece
    return [word for value in values for word in (flag, value)] or piece
