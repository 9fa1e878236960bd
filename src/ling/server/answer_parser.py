"""Splits an answer while it is being written into text, reasoning and tool calls.

The rules are those of `ling.tokenizer.parse_answer`, which reads a whole answer: joined, the events are what it
returns, wherever the text was cut. A call goes out once its `</tool_call>` has been seen, because until then it may
turn out to be text. Apart from calls only what may be the start of a tag is held back.

The grammar is a coroutine: it reads `_text` from `_at` on and yields when it needs more. It leaves less than
one tag unread whenever it yields, and keeps a call that is being read in pieces, so the time is linear.
"""

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from ling.tokenizer import ToolCall, wording
from ling.tokenizer.tool_calls import read_call


@dataclass(frozen=True, slots=True)
class ContentDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    index: int
    text: str
    """JSON of an object."""


Event = ContentDelta | ReasoningDelta | ToolCallStart | ToolCallArguments


class AnswerParser:
    """Reads one answer, given without its `<|role_end|>`, in pieces of any size.

    tools      whether the answer may call tools; if not, a call is content
    reasoning  whether to set a leading `<think>` apart; if not, it is content
    """

    def __init__(self, *, tools: bool, reasoning: bool) -> None:
        self._text, self._at, self._ended = "", 0, False
        self._held: list[str] = []
        """Read and not said: content, unless it becomes a call."""
        self._events: list[Event] = []
        self._grammar = self._turn(tools, reasoning)

    def push(self, text: str) -> list[Event]:
        """Return what is certain after `text`."""
        assert not self._ended, "an answer that is finished does not go on"
        self._text, self._at = self._text[self._at :] + text, 0
        return self._go_on()

    def finish(self) -> list[Event]:
        """Return what was held back, now that nothing follows."""
        assert not self._ended, "an answer is finished once"
        self._ended = True
        return self._go_on()

    def _go_on(self) -> list[Event]:
        next(self._grammar, None)
        events, self._events = self._events, []
        return events

    def _turn(self, tools: bool, reasoning: bool) -> Iterator[None]:
        if reasoning and (yield from self._take(wording.THINK_OPEN, "\n" + wording.THINK_OPEN)):
            yield from self._hold_up_to(_NOT_NEWLINE)
            yield from self._reasoning()
            yield from self._hold_up_to(_NOT_NEWLINE)
            self._held.clear()  # tags and newlines around reasoning are dropped
        if tools and (yield from self._content_before_calls()):
            yield from self._calls()
        while not self._ended or self._at < len(self._text):
            self._say(self._read(len(self._text)))
            yield

    def _reasoning(self) -> Iterator[None]:
        newlines = 0  # read and not said: those at the end are dropped
        while True:
            end, closed = self._find(wording.THINK_CLOSE)
            words = self._read(end)
            kept = words.rstrip("\n")
            if kept:
                self._events.append(ReasoningDelta("\n" * newlines + kept))
                newlines = 0
            newlines += len(words) - len(kept)
            if closed:
                self._at += len(wording.THINK_CLOSE)
            if closed or self._ended:
                return
            yield

    def _content_before_calls(self) -> Generator[None, None, bool]:
        """Pass text on up to the first call, or to the newline before it; return whether there is one."""
        while True:
            end, begun = self._find(wording.CALL_OPEN)
            if (begun or not self._ended) and end > self._at and self._text[end - 1] == "\n":
                end -= 1
            self._say(self._read(end))
            if begun or self._ended:
                return begun
            yield

    def _calls(self) -> Iterator[None]:
        """Read calls until one cannot be read, or something else stands there: all of that is content."""
        index = 0
        while True:
            yield from self._hold_up_to(_NOT_BLANK)
            if index and self._at == len(self._text):
                return  # the end: blanks after the last call are dropped
            call = yield from self._call()
            if call is None:
                self._say("".join(self._held))
                return
            self._events += [ToolCallStart(index, call.name), ToolCallArguments(index, call.arguments_json)]
            self._held.clear()
            index += 1

    def _call(self) -> Generator[None, None, ToolCall | None]:
        if not (yield from self._take(wording.CALL_OPEN)):
            return None
        yield from self._hold_up_to(_NOT_BLANK)
        spelling = yield from self._object()
        try:
            call, _ = read_call(spelling)
        except ValueError:
            return None
        yield from self._hold_up_to(_NOT_BLANK)
        return call if (yield from self._take(wording.CALL_CLOSE)) else None

    def _object(self) -> Generator[None, None, str]:
        """Hold a JSON object and return its text, or "" if none begins here or it has no end.

        In valid JSON the object ends where all its brackets are closed. Other text is refused by whoever reads it.
        """
        if not self._text.startswith("{", self._at):
            return ""
        first, depth, in_string = len(self._held), 0, False
        while True:
            end = self._at
            while found := (_IN_STRING if in_string else _OUTSIDE).search(self._text, end):
                end = found.end()
                if found[0] == '"':
                    in_string = not in_string
                elif not in_string:
                    depth += 1 if found[0] in "{[" else -1
                    if depth == 0:
                        self._hold(end)
                        return "".join(self._held[first:])
            cut_escape = in_string and end < len(self._text) and self._text[-1] == "\\"
            self._hold(len(self._text) - cut_escape)
            if self._ended:
                return ""
            yield

    def _take(self, *tags: str) -> Generator[None, None, bool]:
        """Hold one of `tags` if it stands here; return whether it does."""
        while True:
            for tag in tags:
                if self._text.startswith(tag, self._at):
                    self._hold(self._at + len(tag))
                    return True
            here = self._text[self._at : self._at + max(map(len, tags))]
            if self._ended or not any(tag.startswith(here) for tag in tags):
                return False
            yield

    def _find(self, tag: str) -> tuple[int, bool]:
        """Return where `tag` begins and True; if it does not, False and where it may yet begin, or the text's end."""
        if (start := self._text.find(tag, self._at)) >= 0:
            return start, True
        start = self._text.rfind(tag[0], max(self._at, len(self._text) - len(tag) + 1))  # which is in it only once
        may_begin = start >= 0 and not self._ended and tag.startswith(self._text[start:])
        return start if may_begin else len(self._text), False

    def _hold_up_to(self, pattern: re.Pattern[str]) -> Iterator[None]:
        """Hold what stands before the first match of `pattern`, which matches one character."""
        while True:
            found = pattern.search(self._text, self._at)
            self._hold(found.start() if found else len(self._text))
            if found or self._ended:
                return
            yield

    def _hold(self, end: int) -> None:
        if end > self._at:
            self._held.append(self._read(end))

    def _read(self, end: int) -> str:
        start, self._at = self._at, end
        return self._text[start:end]

    def _say(self, text: str) -> None:
        if text:
            self._events.append(ContentDelta(text))


_OUTSIDE = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'"|\\.', re.DOTALL)
_NOT_BLANK = re.compile(r"\S")
_NOT_NEWLINE = re.compile(r"[^\n]")
