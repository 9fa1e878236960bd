"""The grammar of an answer that may call tools, where a call that it does make must follow a tool's schema strictly.

    start: TEXT | before first ("\\n" call)*

`before` is any text up to the first `<tool_call>`, which the lexer ends as soon as that tag is complete; from there on
it is the grammar of calls that must be made (`ling.engine.tool_grammar`), its first call without the tag.
"""

from collections.abc import Sequence

from ling.engine.request import StructuredOutputsParams
from ling.engine.tool_grammar import MOST_CALLS, Tool, tool_call_grammar
from ling.tokenizer import wording


def optional_call_grammar(tools: Sequence[Tool], *, parallel: bool) -> StructuredOutputsParams:
    """Allow text, calls of `tools`, and text before calls."""
    grammar = tool_call_grammar(tools, "required", parallel=parallel).grammar
    assert grammar is not None, "calls are a Lark grammar"
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
