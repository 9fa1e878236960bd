"""Tools: called when they must be, with arguments that fit, streamed as they are told whole."""

import itertools
import json

import pytest

from ling.engine.grammar import GrammarCompiler
from ling.engine.request import Delta
from ling.server.constraints import constraint_of
from ling.server.errors import ApiError
from ling.server.optional_calls import optional_call_grammar
from ling.server.prompts import chat_prompt
from ling.server.schema import ChatRequest, TokenizeRequest, validate

USER = {"role": "user", "content": "How is the weather in Paris?"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Look up the weather.",
        "parameters": {
            "type": "object", "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["days"], "additionalProperties": False,
        },
    },
}  # fmt: skip
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"days": 3}}\n</tool_call>'


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_must_be_made_is_made_and_fits_its_schema(live, choice):
    asked = {"messages": [USER], "tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": False}
    asked |= {"model": "auto", "temperature": 0, "max_tokens": 60}
    whole = live.client.chat.completions.create(**asked).choices[0]
    (call,) = whole.message.tool_calls
    assert call.function.name == "weather"
    assert 1 <= json.loads(call.function.arguments)["days"] <= 9
    assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
    chunks = [c.choices[0] for c in live.client.chat.completions.create(**asked, stream=True)]
    deltas = [call for c in chunks for call in c.delta.tool_calls or ()]
    assert deltas[0].function.name == "weather"
    assert "".join(d.function.arguments or "" for d in deltas) == call.function.arguments
    assert chunks[-1].finish_reason == "tool_calls"
    assert deltas[0].id.startswith("call_")


def scripted(*texts):
    """Deltas that say `texts`, then stop."""

    def answer(id, n):
        deltas = [Delta(request_id=id, index=0, text=text, token_ids=[1]) for text in texts]
        deltas[-1].finish_reason = "stop"
        return deltas

    return answer


@pytest.mark.parametrize("cuts", [[len(CALL) + 16], [9, 20, 31, 44, 60], list(range(1, 90))])
def test_an_answer_that_calls_is_read_however_it_is_cut(pretend, serve, cuts):
    text = f"Let me look.\n{CALL}"
    bounds = [0, *[c for c in cuts if c < len(text)], len(text)]
    pretend.answer = scripted(*[text[a:b] for a, b in itertools.pairwise(bounds)])
    with serve(pretend) as live:
        asked = {"model": "auto", "messages": [USER], "tools": [WEATHER, CLOCK]}
        whole = live.client.chat.completions.create(**asked).choices[0]
        chunks = [c.choices[0] for c in live.client.chat.completions.create(**asked, stream=True)]
    assert whole.message.content == "Let me look." == "".join(c.delta.content or "" for c in chunks)
    (call,) = whole.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"days": 3}')
    streamed = [c for chunk in chunks for c in chunk.delta.tool_calls or ()]
    assert "".join(c.function.arguments or "" for c in streamed) == call.function.arguments
    assert chunks[-1].finish_reason == whole.finish_reason == "tool_calls"


def test_reasoning_is_set_apart(pretend, serve):
    pretend.answer = scripted("\n<think>\nHm", "m.\n</thi", "nk>\n\nYes.")
    with serve(pretend) as live:
        message = live.ask().json()["choices"][0]["message"]
        stream = live.ask(stream=True).text
    assert (message["reasoning_content"], message["content"]) == ("Hmm.", "Yes.")
    deltas = [json.loads(e[6:])["choices"][0]["delta"] for e in stream.split("\n\n")[:-2]]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == "Hmm."


def test_calls_that_must_not_be_parallel_are_one(pretend, serve):
    pretend.answer = scripted(f"{CALL}\n{CALL}")
    with serve(pretend) as live:
        both = live.post(messages=[USER], tools=[WEATHER]).json()["choices"][0]["message"]["tool_calls"]
        one = live.post(messages=[USER], tools=[WEATHER], parallel_tool_calls=False).json()
        none = live.post(messages=[USER], tools=[WEATHER], tool_choice="none").json()["choices"][0]
    assert len(both) == 2
    assert both[0]["id"] != both[1]["id"]
    assert len(one["choices"][0]["message"]["tool_calls"]) == 1
    assert none["message"]["content"] == f"{CALL}\n{CALL}"
    assert none["finish_reason"] == "stop"


def test_tools_that_must_not_be_called_are_not_shown(engine):
    def prompt(**more):
        asked = validate(ChatRequest, {"messages": [USER], **more})
        return engine.tokenizer.decode(chat_prompt(engine.tokenizer, asked).ids)

    assert json.dumps(WEATHER) in prompt(tools=[WEATHER])
    assert prompt(tools=[WEATHER], tool_choice="none") == prompt()


def history(*tools):
    calls = [{"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id in ("a", "b")]
    return [USER, {"role": "assistant", "tool_calls": calls}, *tools]


def answer(id):
    return {"role": "tool", "tool_call_id": id, "content": f"answer {id}"}


def test_answers_of_tools_stand_in_the_order_of_the_calls(engine):
    def text(*tools):
        asked = validate(TokenizeRequest, {"messages": history(*tools)})
        return engine.tokenizer.decode(chat_prompt(engine.tokenizer, asked).ids)

    assert text(answer("b"), answer("a")) == text(answer("a"), answer("b"))
    assert text(answer("a"), answer("b")).count("<tool_response>") == 2
    for tools in ([answer("a")], [answer("a"), answer("c")], [answer("a"), answer("a"), answer("b")]):
        with pytest.raises(ApiError):
            text(*tools)


def test_what_excludes_each_other_is_refused(live):
    both = live.post(messages=[USER], tools=[WEATHER], guided_choice=["a"])
    assert (both.status_code, both.json()["error"]["param"]) == (400, "guided_choice")
    absent = {"type": "function", "function": {"name": "other"}}
    assert live.post(messages=[USER], tools=[WEATHER], tool_choice=absent).status_code == 400


STRICT = {"type": "function", "function": {**WEATHER["function"], "strict": True}}


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("", "ends"),
        ('Hello, a < b <tool_cal {"x": 1}', "ends"),
        (CALL, "ends"),
        (f"Let me see.\n{CALL}\n{CALL}", "ends"),
        (f"\n<think>\nhm\n</think>\n\n{CALL}", "ends"),
        (CALL[:40], "goes on"),
        (f"{CALL} and so", "is refused"),
        (CALL.replace("3", '"3"'), "is refused"),
        (CALL.replace("weather", "storm"), "is refused"),
        ("Well: <tool_call>{", "is refused"),
    ],
)
def test_an_answer_may_call_or_not_but_a_strict_call_follows_its_schema(engine, text, outcome):
    compiler = GrammarCompiler(engine.tokenizer, engine.model.config.vocab_size)
    assert followed(engine, compiler.compile(optional_call_grammar([STRICT], parallel=True)), text) == outcome


def followed(engine, grammar, text):
    """Say how far `text` follows a grammar."""
    matcher = grammar.matcher()
    for id in engine.tokenizer.encode(text, special=False):
        if not matcher.allowed()[0][0][id]:
            return "is refused"
        matcher.advance([id])
    return "ends" if matcher.allowed()[0][0][engine.tokenizer.eos_id] else "goes on"


FORM = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "required": ["city"],
        "properties": {"city": {"enum": ["Rome"]}}, "additionalProperties": False}}}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "outcome"),
    [('{"city": "Rome"}', "ends"), (CALL, "ends"), (f"{CALL}\n{CALL}", "ends"), ('{"city": "Paris"}', "is refused"),
     ("Well", "is refused"), (f"Well {CALL}", "is refused")],
)  # fmt: skip
def test_what_is_no_call_has_the_form_that_was_asked_for(engine, text, outcome):
    asked = validate(ChatRequest, {"messages": [USER], "tools": [WEATHER], "response_format": FORM})
    compiler = GrammarCompiler(engine.tokenizer, engine.model.config.vocab_size)
    assert followed(engine, compiler.compile(constraint_of(asked)), text) == outcome


def test_a_call_that_must_be_made_leaves_no_text_to_have_a_form():
    asked = {"messages": [USER], "tools": [WEATHER], "tool_choice": "required"}
    formed = validate(ChatRequest, {**asked, "response_format": FORM})
    assert constraint_of(formed) == constraint_of(validate(ChatRequest, asked))


def test_a_model_that_makes_up_a_tool_is_held_to_a_strict_one(live):
    def called(tool):
        answer = live.post(messages=[USER], tools=[tool], temperature=0, max_tokens=60).json()["choices"][0]
        return answer["message"]["tool_calls"][0]["function"]

    assert called(WEATHER)["name"] != "weather", "the model has learnt to read tools: this test needs another question"
    assert called(STRICT)["name"] == "weather"
    assert json.loads(called(STRICT)["arguments"]).keys() == {"days"}
