"""Answers in a form: OpenAI's response_format and vLLM's extras."""

import json
import re

import pytest

SCHEMA = {
    "type": "object", "required": ["city", "size"], "additionalProperties": False,
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "size": {"type": "integer", "minimum": 1, "maximum": 99}},
}  # fmt: skip
QUESTION = {"model": "auto", "messages": [{"role": "user", "content": "Which city?"}], "max_tokens": 60}


def test_a_json_schema_is_kept_streamed_or_not(live):
    form = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": SCHEMA}}
    asked = {**QUESTION, "temperature": 0, "response_format": form}
    whole = live.client.chat.completions.create(**asked).choices[0].message.content
    value = json.loads(whole)
    assert value["city"] in ("Paris", "Rome")
    assert 1 <= value["size"] <= 99
    chunks = live.client.chat.completions.create(**asked, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole


def test_any_json_object_is_one(live):
    answer = live.post(**QUESTION, temperature=0, response_format={"type": "json_object"}).json()["choices"][0]
    text = answer["message"]["content"]
    assert text.startswith("{"), text
    assert answer["finish_reason"] == "length" or isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"guided_choice": ["red", "green"]}, "red|green"),
        ({"guided_regex": "[0-9]{3}-[a-f]{2}"}, "[0-9]{3}-[a-f]{2}"),
        ({"guided_json": {"enum": [1, 2]}}, "1|2"),
        ({"guided_grammar": 'start: "yes" | "no"'}, "yes|no"),
        ({"structured_outputs": {"choice": ["red", "green"]}}, "red|green"),
        ({"structured_outputs": {"json": '{"enum": ["x"]}'}}, '"x"'),
        ({"response_format": {"type": "text"}}, "(?s).*"),
    ],
)
def test_vllms_extras_say_the_same(live, extra, pattern):
    answer = live.post(**QUESTION, temperature=1, seed=1, **extra).json()
    text = answer["choices"][0]["message"]["content"]
    assert re.fullmatch(pattern, text), text


def test_a_completion_takes_a_form_too(live):
    answer = live.post("/v1/completions", prompt="Red or green?", guided_choice=["red", "green"], max_tokens=9).json()
    assert answer["choices"][0]["text"] in ("red", "green")


@pytest.mark.parametrize(
    "extra",
    [
        {"guided_regex": "(" * 50},
        {"guided_regex": "(a{1000}){100000}"},
        {"guided_json": {"type": "nothing"}},
        {"guided_json": "not json"},
        {"guided_grammar": "start: nothing"},
        {"guided_choice": []},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": True, "regex": "a"}},
        {"guided_choice": ["a"], "guided_regex": "a"},
        {"guided_choice": ["a"], "response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://example.org/x"}}}},
    ],
)
def test_a_form_that_cannot_be_kept_harms_nobody_else(live, extra):
    answer = live.post(**QUESTION, **extra)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert live.http.get("/health").status_code == 200
