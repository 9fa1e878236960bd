"""The exported Jinja text renders what the Python renderer renders, and fails where it fails."""

import json

import jinja2.ext
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ling.errors import RequestError
from ling.tokenizer import render
from ling.tokenizer.template import PRETRAIN_TEMPLATE, SFT_TEMPLATE
from tests.tokenizer import chats


def compile_as_transformers_does(text):
    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(text)


TEMPLATES = {
    "sft": compile_as_transformers_does(SFT_TEMPLATE),
    "pretrain": compile_as_transformers_does(PRETRAIN_TEMPLATE),
}


def by_jinja(messages, template, **options):
    """Render, or give None where the template raises."""
    try:
        return TEMPLATES[template].render(messages=messages, **options)
    except (TypeError, jinja2.TemplateError):
        return None


def by_python(messages, template, **options):
    try:
        return render(messages, template=template, **options)
    except RequestError:
        return None


@pytest.mark.parametrize("case", chats.GOLDEN, ids=str)
def test_golden_chats_render_exactly(case):
    assert by_jinja(case.messages, case.template, **case.options) == case.rendered


def test_thinking_cannot_be_switched_on_by_a_template_argument():
    messages = [{"role": "user", "content": "hi"}]
    options = {"thinking": "on", "thinking_option": "on", "enable_thinking": True}
    assert by_jinja(messages, "sft", **options) == render(messages)


@settings(deadline=None, max_examples=300)
@given(chats.chats(chats.text), chats.tools, st.booleans(), st.sampled_from(["sft", "pretrain"]))
def test_jinja_and_python_agree(messages, tools, add_generation_prompt, template):
    options = {"tools": tools, "add_generation_prompt": add_generation_prompt}
    rendered = by_python(messages, template, **options)
    assert by_jinja(messages, template, **options) == rendered
    assert template == "pretrain" or rendered is not None


@settings(deadline=None, max_examples=500)
@given(chats.careless_chats, st.sampled_from(["sft", "pretrain"]))
def test_jinja_and_python_fail_on_the_same_chats(messages, template):
    assert by_jinja(messages, template) == by_python(messages, template)
