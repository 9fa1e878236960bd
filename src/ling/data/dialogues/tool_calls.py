"""Calls of small tools, and what to say when a tool has answered.

The chat template writes 85 pieces of text around the tools (spec: tokenizer_chat.md 3.A.2), so a schema is
the shortest JSON schema that still names each argument: `{"properties": {"city": {}}}`. With a vocabulary of
2,048 learned on these dialogues, those of level 1 then have at most 160 tokens.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from ling.data.dialogues.phrasing import finish
from ling.data.dialogues.split import canonical
from ling.data.dialogues.types import Dialogue

CITIES = (
    "Paris", "Berlin", "Rome", "Madrid", "Tokyo", "Beijing", "London", "Moscow", "Cairo", "Athens",
    "Lisbon", "Vienna", "Warsaw", "Oslo", "Havana", "Dublin", "Ottawa", "Lima", "Shanghai", "Hangzhou",
)  # fmt: skip
SKIES = ("sunny", "rainy", "cloudy", "windy", "snowy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    name: str
    parameters: tuple[str, ...]
    questions: tuple[str, ...]
    arguments: Callable[[Random], dict[str, Any]]
    result: Callable[[Random, Mapping[str, Any]], str]
    """Text of the tool's answer to these arguments."""
    statement: str
    """What the assistant says then, with the arguments and `{result}`."""
    required: tuple[str, ...]
    """Phrases that a right statement has, filled in like it."""
    level: int = 1
    """The lowest level that has this tool."""
    others: tuple[str, ...] = ()
    """Words that a wrong statement may have, less the arguments and the result."""

    @property
    def schema(self) -> dict[str, Any]:
        """Return the tool as an OpenAI request lists it."""
        properties: dict[str, Any] = {name: {} for name in self.parameters}
        function = {"name": self.name, "parameters": {"properties": properties}}
        return {"type": "function", "function": function}


TOOLS = (
    Tool(
        name="get_weather",
        parameters=("city",),
        questions=(
            "what is the weather in {city}?", "how is the weather in {city}?", "weather in {city}?",
            "tell me the weather in {city}.", "check the weather in {city}.", "is it sunny in {city}?",
            "is it raining in {city}?", "will it rain in {city}?", "is it cold in {city}?",
        ),
        arguments=lambda random: {"city": random.choice(CITIES)},
        result=lambda random, arguments: random.choice(SKIES),
        statement="It is {result} in {city}.",
        required=("is {result}", "{city}"),
        others=SKIES + CITIES,
    ),
    Tool(
        name="get_time",
        parameters=("city",),
        questions=(
            "what time is it in {city}?", "what is the time in {city}?", "time in {city}?",
            "tell me the time in {city}.", "check the time in {city}.", "how late is it in {city}?",
            "the time in {city}?", "give me the time in {city}.",
        ),
        arguments=lambda random: {"city": random.choice(CITIES)},
        result=lambda random, arguments: f"{random.randrange(24)}:{random.randrange(60):02}",
        statement="It is {result} in {city}.",
        required=("is {result}", "{city}"),
        others=CITIES,
    ),
    Tool(
        name="add",
        level=2,
        parameters=("a", "b"),
        questions=(
            "use the tool to add {a} and {b}.", "add {a} and {b} with the tool.",
            "use add for {a} and {b}.", "call add with {a} and {b}.", "please use the tool: {a} + {b}.",
            "what is {a} + {b}? Use the tool.",
        ),
        arguments=lambda random: {"a": random.randrange(1, 100), "b": random.randrange(1, 100)},
        result=lambda random, arguments: str(arguments["a"] + arguments["b"]),
        statement="The sum is {result}.",
        required=("is {result}",),
    ),
    Tool(
        name="timer",
        parameters=("minutes",),
        questions=(
            "set a timer for {minutes} minutes.", "start a timer for {minutes} minutes.",
            "timer for {minutes} minutes.", "a timer for {minutes} minutes.",
            "set a {minutes} minute timer.", "wake me in {minutes} minutes.", "wait {minutes} minutes.",
            "start a {minutes} minute timer.", "call me in {minutes} minutes.",
        ),
        arguments=lambda random: {"minutes": random.randrange(2, 61)},
        result=lambda random, arguments: "ok",
        statement="The timer is set for {minutes} minutes.",
        required=("timer is set", "{minutes}"),
    ),
)  # fmt: skip

_TOOLS_OF_LEVEL = {level: tuple(tool for tool in TOOLS if tool.level <= level) for level in (1, 2)}
_SCHEMAS = {tool.name: tool.schema for tool in TOOLS}
_LEADS = ("", "", "", "Hi! ", "Hey, ", "Ling, ", "Okay, ", "Now, ", "Hello! ")


def draw(random: Random, level: int) -> Dialogue:
    """Ask for something that needs a tool; one time in four the tool has already answered.

    A call and the dialogue after its result share their user text, so both are held out or neither.

    level 1   one tool is offered; after its result no tools are listed, which keeps the dialogue short
    level 2   two tools are offered, always
    """
    tool = random.choice(_TOOLS_OF_LEVEL[level])
    arguments = tool.arguments(random)
    question = finish(random, random.choice(_LEADS), random.choice(tool.questions).format(**arguments), "en")
    offered = [tool.name] if level == 1 else _two_tools(random, tool.name)
    call = {"name": tool.name, "arguments": arguments}
    messages: tuple[Mapping[str, Any], ...] = ({"role": "user", "content": question}, _call_message(call))
    expected: dict[str, Any] = {"call": call}
    if random.random() < 0.25:
        words = arguments | {"result": tool.result(random, arguments)}
        messages += (
            {"role": "tool", "tool_call_id": "call_0", "content": words["result"]},
            {"role": "assistant", "content": tool.statement.format(**words)},
        )
        required = tuple(phrase.format(**words) for phrase in tool.required)
        others = tuple(word for word in tool.others if word not in words.values())
        expected = {"required": required, "others": others}
        if level == 1:
            offered = []
    return Dialogue(
        task="tool_calls",
        messages=messages,
        tools=tuple(_SCHEMAS[name] for name in offered),
        expected=expected,
        split_text=canonical(question),
    )


def _two_tools(random: Random, name: str) -> list[str]:
    other = random.choice([tool.name for tool in TOOLS if tool.name != name])
    return [name, other] if random.random() < 0.5 else [other, name]


def _call_message(call: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": json.dumps(call["arguments"])}
    calls = [{"id": "call_0", "type": "function", "function": function}]
    return {"role": "assistant", "content": None, "tool_calls": calls}
