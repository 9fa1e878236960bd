"""Answers on a terminal while they come: finished blocks as markdown, the block that grows as plain text below them.

A whole answer that is drawn again and again flickers, and cannot be drawn at all once it is taller than the screen.
"""

import re
import unicodedata
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


class PlainShow:
    """Prints text as it comes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def push(self, text: str) -> None:
        self._console.out(harmless(text), end="", highlight=False)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._console.out("")


class MarkdownShow:
    """Renders each block when it is finished."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rest = ""
        self._live = Live(console=console, transient=True, refresh_per_second=10)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def push(self, text: str) -> None:
        finished, self._rest = split_finished(self._rest + harmless(text))
        if finished.strip():
            self._console.print(ChatMarkdown(finished), "")
        shown = self._rest.splitlines()[-max(1, self._console.height - 2) :]
        self._live.update(Text("\n".join(shown)))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.update(Text(""))
        self._live.stop()
        if self._rest.strip():
            self._console.print(ChatMarkdown(self._rest))


class ChatMarkdown(Markdown):
    """Markdown as chats mean it: tags are text, and a line that ends is a line that ends."""

    def __init__(self, text: str) -> None:
        from markdown_it import MarkdownIt

        super().__init__(text)
        parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
        self.parsed = parser.parse(text)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


def split_finished(text: str) -> tuple[str, str]:
    """Cut behind the last blank line that is not inside a fenced block; nothing before the cut changes any more."""
    fence = ""
    position = cut = 0
    for line in text.splitlines(keepends=True):
        position += len(line)
        if found := _FENCE.match(line):
            mark = found[1]
            if not fence:
                fence = mark
            elif mark.startswith(fence) and not line.strip().strip(mark[0]):
                fence = ""
        elif not fence and not line.strip() and line.endswith("\n"):
            cut = position
    return text[:cut], text[cut:]


def harmless(text: str) -> str:
    """Replace control characters: what a model says moves no cursor."""
    return "".join("?" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)
