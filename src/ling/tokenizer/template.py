"""The same format as Jinja text, for programs that load a saved tokenizer (transformers, vLLM, SGLang).

We render with `chat.py` and never with this. The strings come from `wording.py`: `$NAME` below stands for
one, as a Jinja literal; `$HUMAN` and the other roles stand for their whole header.
"""

import json
from string import Template

from ling.tokenizer import wording
from ling.tokenizer.special import TURN_END

_GUARD = """\
{%- if not messages -%}
  {{- raise_exception("a chat needs at least one message") -}}
{%- endif -%}
"""

_PRETRAIN = """\
{%- for message in messages -%}
  {%- set role = message.role.lower() -%}
  {{- $HUMAN if role == "user" else $ROLE_OPEN + role.upper() + $ROLE_CLOSE -}}
  {{- "" + message.content -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- $ASSISTANT -}}
{%- endif -%}
"""

_SFT = """\
{%- macro text_of(message) -%}
  {{- message.content if message.content is string else "" -}}
{%- endmacro -%}

{%- macro tool_call(item) -%}
  {%- set function = item.function or item -%}
  {{- $CALL_BEFORE_NAME + function.name + $CALL_BEFORE_ARGUMENTS -}}
  {{- function.arguments if function.arguments is string else function.arguments | tojson -}}
  {{- $CALL_AFTER -}}
{%- endmacro -%}

{%- macro answer(message, with_reasoning) -%}
  {%- set text = text_of(message) -%}
  {%- set reasoning = "" -%}
  {%- if message.reasoning_content is string -%}
    {%- set reasoning = message.reasoning_content -%}
  {%- elif $THINK_CLOSE in text -%}
    {%- set parts = text.split($THINK_CLOSE) -%}
    {%- set reasoning = parts[0].rstrip("\\n").split($THINK_OPEN)[-1].lstrip("\\n") -%}
    {%- set text = parts[-1].lstrip("\\n") -%}
  {%- endif -%}
  {%- if with_reasoning and reasoning -%}
    {{- $REASONING_BEFORE + reasoning.strip("\\n") + $REASONING_AFTER + text.lstrip("\\n") -}}
  {%- else -%}
    {{- text -}}
  {%- endif -%}
  {%- for item in message.tool_calls or [] -%}
    {{- "\\n" if text or not loop.first else "" -}}
    {{- tool_call(item) -}}
  {%- endfor -%}
{%- endmacro -%}

{%- set last = namespace(query=messages | length - 1) -%}
{%- for message in messages -%}
  {%- if message.role == "user" and message.content is string -%}
    {%- if not (message.content.startswith($RESPONSE_OPEN) and message.content.endswith($RESPONSE_CLOSE)) -%}
      {%- set last.query = loop.index0 -%}
    {%- endif -%}
  {%- endif -%}
{%- endfor -%}

{{- $SYSTEM -}}
{%- if messages[0].role == "system" -%}
  {{- messages[0].content + "\\n" -}}
{%- endif -%}
{%- if tools -%}
  {{- $TOOLS_BEFORE -}}
  {%- for tool in tools -%}
    {{- "\\n" -}}
    {{- tool | tojson -}}
  {%- endfor -%}
  {{- $TOOLS_AFTER -}}
{%- endif -%}
{{- $THINKING + $TURN_END -}}

{%- for message in messages -%}
  {%- if message.role == "user" -%}
    {{- $HUMAN + message.content + $TURN_END -}}
  {%- elif message.role == "system" and not loop.first -%}
    {{- $SYSTEM + text_of(message) + $TURN_END -}}
  {%- elif message.role == "assistant" -%}
    {{- $ASSISTANT + answer(message, loop.index0 > last.query) + $TURN_END -}}
  {%- elif message.role == "tool" -%}
    {{- $OBSERVATION if loop.first or loop.previtem.role != "tool" else "" -}}
    {{- $RESPONSE_BEFORE + text_of(message) + $RESPONSE_AFTER -}}
    {{- $TURN_END if loop.last or loop.nextitem.role != "tool" else "" -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- $ASSISTANT -}}
{%- endif -%}
"""


def _literals() -> dict[str, str]:
    """Give every string of the format by its name in the texts above, in Jinja's quotes."""
    strings = {name: value for name, value in vars(wording).items() if name.isupper() and isinstance(value, str)}
    strings |= {role: wording.role_header(role) for role in wording.ROLES}
    strings |= {"TURN_END": TURN_END, "THINKING": wording.THINKING["off"]}
    return {name: json.dumps(string) for name, string in strings.items()}


SFT_TEMPLATE = Template(_GUARD + _SFT).substitute(_literals())
PRETRAIN_TEMPLATE = Template(_GUARD + _PRETRAIN).substitute(_literals())
