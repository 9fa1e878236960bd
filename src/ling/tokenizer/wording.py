"""The exact strings of Ling's chat format, for the Python renderer, the Jinja template and the parser."""

import json

from ling.tokenizer.special import ROLE_CLOSE, ROLE_OPEN

ROLES = SYSTEM, HUMAN, ASSISTANT, OBSERVATION = "SYSTEM", "HUMAN", "ASSISTANT", "OBSERVATION"

THINKING = {"off": "detailed thinking off", "on": "detailed thinking on"}
"""Ends the header. The published chat template only knows "off"."""

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
REASONING_BEFORE = f"\n{THINK_OPEN}\n"
REASONING_AFTER = f"\n{THINK_CLOSE}\n\n"

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
CALL_BEFORE_NAME = f'{CALL_OPEN}\n{{"name": "'
CALL_BEFORE_ARGUMENTS = '", "arguments": '
CALL_AFTER = f"}}\n{CALL_CLOSE}"

RESPONSE_OPEN, RESPONSE_CLOSE = "<tool_response>", "</tool_response>"
RESPONSE_BEFORE = f"\n{RESPONSE_OPEN}\n"
RESPONSE_AFTER = f"\n{RESPONSE_CLOSE}"

TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
"""Then each tool as JSON, on a line of its own."""
TOOLS_AFTER = (
    "\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within "
    f"{CALL_OPEN}{CALL_CLOSE} XML tags:\n{CALL_OPEN}\n"
    f'{{"name": <function-name>, "arguments": <args-json-object>}}\n{CALL_CLOSE}\n'
)


def role_header(role: str) -> str:
    return f"{ROLE_OPEN}{role}{ROLE_CLOSE}"


def to_json(value: object) -> str:
    """Spell `value` as the format does: one line, keys in their order, nothing escaped that JSON allows."""
    return json.dumps(value, ensure_ascii=False)
