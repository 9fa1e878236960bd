"""What a request may say: every field is kept or refused by name."""

import time

import pytest

from ling.server.errors import ApiError
from ling.server.json_body import decode
from ling.server.schema import ChatRequest, CompletionRequest, validate
from ling.server.schema.refused import REFUSED

USER = {"role": "user", "content": "x"}
TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "1"), ("temperature", True), ("temperature", -1), ("temperature", 1e999), ("top_p", 0),
        ("top_p", 2), ("n", True), ("n", 0), ("n", 17), ("n", 1.0), ("max_tokens", 0), ("max_tokens", "5"),
        ("max_completion_tokens", -1), ("seed", 2**63), ("seed", 0.5), ("logprobs", 1), ("top_logprobs", 21),
        ("top_logprobs", 2), ("stop", [""]), ("stop", ["x"] * 17), ("stop", "x" * 257), ("stop_token_ids", [-1]),
        ("logit_bias", {str(i): 1 for i in range(1025)}), ("logit_bias", {"1": "2"}), ("stream", 1),
        ("presence_penalty", 3), ("frequency_penalty", -3), ("min_p", 2), ("top_k", -2), ("repetition_penalty", 0),
        ("messages", []), ("messages", [USER] * 2049), ("messages", "hello"), ("messages", [{"role": "user"}]),
        ("messages", [{"role": "wizard", "content": "x"}]), ("messages", [{**USER, "name": "Ann"}]),
        ("messages", [{**USER, "tool_calls": []}]), ("messages", [{"role": "tool", "content": "x"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": 5}]}]),
        ("tools", [{"type": "web_search"}]), ("tools", [{"type": "function", "function": {"name": "a b"}}]),
        ("tools", [TOOL, TOOL]), ("tool_choice", "sometimes"), ("tool_choice", "required"),
        ("response_format", {"type": "json_schema"}), ("response_format", {"type": "xml"}),
        ("stream_options", {"include_usage": True}), ("store", True), ("metadata", {"a": 1}),
        ("chat_template_kwargs", {"add_generation_prompt": False}), ("add_generation_prompt", False),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(field, value):
    with pytest.raises(ApiError) as refused:
        validate(ChatRequest, {"messages": [USER], field: value})
    assert refused.value.status == 400
    named = refused.value.param or str(refused.value)
    assert field.split("_")[0] in named or field.split("_")[-1] in named, (named, str(refused.value))


def test_a_field_is_implemented_or_refused_by_name_never_both():
    for model, body in ((ChatRequest, {"messages": [USER]}), (CompletionRequest, {"prompt": "x"})):
        for name in REFUSED.keys() - model.model_fields.keys():
            with pytest.raises(ApiError, match="is not supported") as refused:
                validate(model, {**body, name: {}})
            assert (refused.value.param, refused.value.code) == (name, "unsupported_parameter")
    assert REFUSED.keys() & set(ChatRequest.model_fields) == set()
    assert REFUSED.keys() & set(CompletionRequest.model_fields) == {"echo"}


def test_a_misspelt_field_is_told_what_it_may_mean():
    with pytest.raises(ApiError, match="unknown parameter temprature; did you mean temperature\\?"):
        validate(ChatRequest, {"messages": [USER], "temprature": 1})


@pytest.mark.parametrize(
    ("field", "value", "param", "reason"),
    [
        ("stop", ["a"] * 17, "stop", "at most 16 items"),
        ("stop", "", "stop", "at least 1 character"),
        ("stop", ["a", ""], "stop[1]", "at least 1 character"),
        ("stop", 5, "stop", "valid"),
        ("prompt", ["a"] * 65, "prompt", "at most 64 items"),
        ("prompt", [[5]] * 65, "prompt", "at most 64 items"),
        ("prompt", [], "prompt", "at least 1 item"),
        ("prompt", [5, -1], "prompt[1]", "greater than or equal to 0"),
        ("prompt", [[5], [-1]], "prompt[1][0]", "greater than or equal to 0"),
        ("prompt", ["a", 5], "prompt", "valid"),
        ("logit_bias", {"5": "1"}, "logit_bias.5", "valid number"),
    ],
)
def test_a_field_of_several_forms_is_told_what_is_wrong_with_the_one_that_was_meant(field, value, param, reason):
    with pytest.raises(ApiError, match=reason) as caught:
        validate(CompletionRequest, {"prompt": "a", field: value})
    assert (caught.value.param or "").startswith(param)


def test_a_tool_choice_that_is_no_tool_is_told_by_name():
    with pytest.raises(ApiError) as caught:
        validate(ChatRequest, {"messages": [USER], "tool_choice": {"type": "function", "function": {"name": "a b"}}})
    assert caught.value.param == "tool_choice.function.name"


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ('{"prompt": "a", "prompt": "b"}', "prompt"),
        ('{"prompt": "a", "logit_bias": {"5": 1, "5": -1}}', "5"),
        ('{"prompt": "a", "metadata": {"a": "b", "\\u0061": "c"}}', "a"),
        ('{"k": 1, "k": 1' + "0" * 4000 + "}", "k"),
    ],
)
def test_a_key_that_stands_twice_is_refused_since_readers_differ_on_which_counts(body, key):
    with pytest.raises(ApiError, match=f"the body has the key {key} twice in one object"):
        decode(body.encode())
    assert decode(b'{"a": {"b": 1}, "b": [{"a": 2.5}, {"a": 3}]}') == {"a": {"b": 1}, "b": [{"a": 2.5}, {"a": 3}]}


@pytest.mark.parametrize("field", ["max_tokens", "n", "seed", "top_k", "min_tokens", "logprobs", "prompt_logprobs"])
def test_a_number_of_any_size_is_refused_where_it_cannot_be_meant(live, field):
    for number in (10**30, -(10**30), 10**4000, 2**63):
        answer = live.post("/v1/completions", **{"prompt": "a", "max_tokens": 1, field: number})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), (field, number)


def test_thousands_of_unknown_fields_are_told_by_the_first(live):
    begin = time.monotonic()
    error = live.ask(**{f"field{i}": None for i in range(30_000)}).json()["error"]
    assert (error["param"], error["code"]) == ("field0", "unknown_parameter")
    assert time.monotonic() - begin < 20


def test_what_is_no_object_is_said_without_names_of_ours():
    for field, value in (("messages", [None]), ("messages", [[]]), ("stream_options", 5), ("logit_bias", [1])):
        with pytest.raises(ApiError, match=r"must be an object$"):
            validate(ChatRequest, {"messages": [USER], field: value})


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"guided_regex": "(a)\\1"}, "guided_regex"),
        ({"guided_json": {"type": "string", "minLength": 10**9}}, "guided_json"),
        ({"structured_outputs": {"grammar": "start: start"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://x"}}}},
         "response_format"),
        ({"tools": [{**TOOL, "function": {"name": "f", "parameters": {"type": "string"}}}], "tool_choice": "required"},
         "tools"),
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_kept_names_the_field_that_asks_for_it(live, extra, param):
    answer = live.ask(**extra)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_null_means_left_out_but_not_for_what_is_unknown():
    assert validate(ChatRequest, {"messages": [USER], "stop": None, "audio": None, "n": None}).n == 1
    with pytest.raises(ApiError):
        validate(ChatRequest, {"messages": [USER], "foo": None})


def test_an_answer_comes_back_as_a_message():
    """As `message.model_dump()` of the official client."""
    answer = {"role": "assistant", "content": None, "refusal": None, "annotations": None, "audio": None,
              "function_call": None, "tool_calls": [CALL], "reasoning_content": None}  # fmt: skip
    tool = {"role": "tool", "tool_call_id": "a", "content": "5", "name": "f"}
    read = validate(ChatRequest, {"messages": [USER, answer, tool]})
    assert read.messages[1].tool_calls[0].function.name == "f"


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert validate(ChatRequest, {"messages": [{"role": "user", "content": parts}]}).messages[0].content == "a\nb"


def test_two_names_of_one_limit_must_agree():
    both = {"messages": [USER], "max_tokens": 5, "max_completion_tokens": 5}
    assert validate(ChatRequest, both).max_tokens == 5
    with pytest.raises(ApiError, match="two names of one limit"):
        validate(ChatRequest, {**both, "max_tokens": 6})


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{**USER, "tool_calls": []}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ],
)
def test_what_does_not_fit_together_names_the_field_to_change(extra, param):
    with pytest.raises(ApiError) as refused:
        validate(ChatRequest, {"messages": [USER], **extra})
    assert refused.value.param == param
    assert str(refused.value).startswith(f"{param}: ")


def test_tokens_beyond_the_vocabulary_are_told_by_the_field_they_stand_in(live):
    for extra in ({"logit_bias": {"99999": 1}}, {"stop_token_ids": [99999]}):
        error = live.ask(**extra).json()["error"]
        assert error["param"] == next(iter(extra)), error


def test_errors_are_shaped_as_the_official_client_reads_them(live):
    import openai

    with pytest.raises(openai.BadRequestError) as refused:
        live.client.chat.completions.create(model="auto", messages=[USER], temperature=3000)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        live.client.chat.completions.create(model="gpt-4", messages=[USER])
    assert missing.value.code == "model_not_found"
    assert live.post("/v1/completions", prompt="x", suffix="y").json()["error"] == {
        "message": "suffix is not supported: the model was not trained to fill in the middle",
        "type": "invalid_request_error", "param": "suffix", "code": "unsupported_parameter",
    }  # fmt: skip


def test_the_served_names_and_auto_are_the_model(live):
    listed = [model.id for model in live.client.models.list()]
    assert listed == ["ling", "other/name"]
    assert live.client.models.retrieve("other/name").id == "other/name"
    for name in (*listed, "auto"):
        assert live.post("/v1/completions", model=name, prompt="x", max_tokens=1).status_code == 200
    assert live.http.get("/v1/models/gpt-4").status_code == 404


def test_a_prompt_beyond_the_context_is_refused_before_it_is_encoded(live):
    for text in ("word " * 5000, "x" * 600_000):
        answer = live.ask(messages=[{"role": "user", "content": text}])
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert live.post("/v1/completions", prompt=text).status_code == 400
