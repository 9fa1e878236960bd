"""Chats to test with: the golden ones, and random ones that know the format's weak spots."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from ling.tokenizer import SPECIAL_TOKENS


@dataclass(frozen=True)
class Case:
    name: str
    template: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    add_generation_prompt: bool
    rendered: str | None
    """None: upstream raises."""

    def __str__(self) -> str:
        return f"{self.template}-{self.name}"

    @property
    def options(self) -> dict[str, Any]:
        return {"tools": self.tools, "add_generation_prompt": self.add_generation_prompt}


def _read_golden() -> list[Case]:
    path = Path(__file__).parents[1] / "golden" / "chat" / "chat_cases.json"
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    return [Case(**{key: case[key] for key in Case.__annotations__}) for case in cases]


GOLDEN = _read_golden()

PLAIN_PIECES = [
    "\n", "\n\n", " ", "Hi", " there", "12", "上海", "🌸", "'s", "\r\n", "\t", "<", ">", "|", "<rol", "e>",
    "</", "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    '{"a": 1}',
]  # fmt: skip


def spells_no_special(text: str) -> bool:
    return not any(token in text for token in SPECIAL_TOKENS)


plain_pieces = st.sampled_from(PLAIN_PIECES) | st.text(max_size=3)
plain_text = st.lists(plain_pieces, max_size=6).map("".join).filter(spells_no_special)
hostile_text = st.lists(st.sampled_from([*PLAIN_PIECES, *SPECIAL_TOKENS]), max_size=6).map("".join)
text = plain_text | hostile_text

json_value: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
tools = st.none() | st.lists(st.dictionaries(text, json_value, max_size=3), max_size=2)


def tool_calls(text: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    function = st.fixed_dictionaries({"name": text, "arguments": text | st.dictionaries(text, text, max_size=2)})
    return function | function.map(lambda call: {"type": "function", "function": call, "id": "a1"})


def chats(text: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Give chats that can be rendered by the sft template."""
    wrapped = text.map(lambda inner: f"<tool_response>{inner}</tool_response>")
    message = st.one_of(
        st.fixed_dictionaries({"role": st.just("user"), "content": text | wrapped}),
        st.fixed_dictionaries({"role": st.just("system"), "content": text}),
        st.fixed_dictionaries({"role": st.just("tool"), "content": text | st.none()}),
        st.fixed_dictionaries(
            {"role": st.just("assistant"), "content": text | st.none()},
            optional={
                "reasoning_content": text | st.none(),
                "tool_calls": st.none() | st.lists(tool_calls(text), max_size=3),
            },
        ),
    )
    return st.lists(message, min_size=1, max_size=6)


junk = st.none() | st.integers(0, 1) | text | st.lists(text, max_size=1) | st.dictionaries(text, text, max_size=1)
"""For any field: what a careless program sends."""

careless_message = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "system", "assistant", "tool", "HUMAN", "User", "[cls]", "", None, 1]),
        "content": junk,
        "reasoning_content": junk,
        "tool_calls": junk
        | st.lists(
            st.fixed_dictionaries({}, optional={"name": junk, "arguments": junk, "function": junk}),
            max_size=2,
        ),
    },
)
careless_chats = st.lists(careless_message, max_size=4)
