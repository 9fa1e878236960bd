"""Grammars of answers that may call tools: where a call must be strict, and where what is no call must be JSON.

    start: TEXT | before first ("\\n" call)*

`before` is any text up to the first `<tool_call>`, which the lexer ends as soon as that tag is complete; from there on
it is the grammar of calls that must be made (`ling.engine.tool_grammar`), its first call without the tag.
"""

from collections.abc import Sequence

from ling.engine import grammar_limits
from ling.engine.grammar import json_rule
from ling.engine.request import StructuredOutputsParams
from ling.engine.tool_grammar import MOST_CALLS, Tool, tool_call_grammar
from ling.tokenizer import wording


def optional_call_grammar(tools: Sequence[Tool], *, parallel: bool) -> StructuredOutputsParams:
    """Allow text, calls of `tools`, and text before calls."""
    grammar = _calls(tools, parallel)
    calls = dict(line.split(": ", 1) for line in grammar.splitlines() if line.startswith("call_"))
    tag, opened = wording.CALL_OPEN, f'"{wording.CALL_OPEN}'
    assert all(body.startswith(opened) for body in calls.values()), calls
    more = f' ("\\n" call){{0,{MOST_CALLS - 1}}}' if parallel else ""
    rules = [
        f"start: TEXT | before first{more}",
        f"TEXT: /(?s:.*)/ & ~/(?s:.*){tag}(?s:.*)/",
        f"before[lazy]: /(?s:.*){tag}/",
        f"first: {' | '.join(f'first_{name}' for name in calls)}",
        *(f'first_{name}: "{body.removeprefix(opened)}' for name, body in calls.items()),
    ]
    if parallel:
        rules += [f"call: {' | '.join(calls)}", *(f"{name}: {body}" for name, body in calls.items())]
    return StructuredOutputsParams(grammar="\n".join(rules))


def json_or_calls(
    form: StructuredOutputsParams, tools: Sequence[Tool], *, parallel: bool
) -> StructuredOutputsParams | None:
    """Allow JSON as `form` has it, or calls of `tools`; None if `form` is no JSON."""
    if form.json is None and not form.json_object:
        return None
    asked = {"type": "object"} if form.json is None else form.json
    schema = grammar_limits.checked_schema(asked, "the JSON schema")
    first, *rules = _calls(tools, parallel).splitlines()
    rules = [rule.replace("start: ", "calls: ", 1) if rule.startswith("start: ") else rule for rule in rules]
    return StructuredOutputsParams(
        grammar="\n".join([first, "start: form | calls", f"form: {json_rule(schema)}", *rules])
    )


def _calls(tools: Sequence[Tool], parallel: bool) -> str:
    grammar = tool_call_grammar(tools, "required", parallel=parallel).grammar
    assert grammar is not None, "calls are a Lark grammar"
    return grammar
