"""`/v1/chat/completions` with the official client and the bundled model."""

import json
from typing import Any

import pytest

from ling.server.usage import Usage

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY: dict[str, Any] = {"model": "auto", "messages": QUESTION, "temperature": 0}


def test_a_question_is_answered_and_counted(live):
    answer = live.client.chat.completions.create(**GREEDY)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "ling"
    usage = answer.usage
    assert usage.prompt_tokens == len(live.service.tokenizer.encode(rendered())), usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert "<|role_end|>" not in answer.choices[0].message.content


def rendered() -> str:
    return (
        "<role>SYSTEM</role>detailed thinking off<|role_end|>"
        "<role>HUMAN</role>What is the capital of France?<|role_end|><role>ASSISTANT</role>"
    )


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"n": 3, "seed": 5, "temperature": 1.5, "max_tokens": 12},
        {"logprobs": True, "top_logprobs": 3, "max_tokens": 5},
        {"stop": "Paris"},
        {"stop": ["capital", "xyz"], "extra_body": {"include_stop_str_in_output": True}},
        {"max_tokens": 3, "extra_body": {"return_token_ids": True}},
    ],
)
def test_a_streamed_answer_is_the_whole_one(live, extra):
    asked = {**GREEDY, **extra}
    whole = live.client.chat.completions.create(**asked)
    chunks = list(live.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    *pieces, last = chunks
    assert last.choices == []
    varying = {"prompt_tokens_details", "ling"}  # what was cached, and what was drafted, which depends on times
    assert last.usage.model_dump(exclude=varying) == whole.usage.model_dump(exclude=varying)
    for choice in whole.choices:
        own = [c for chunk in pieces for c in chunk.choices if c.index == choice.index]
        assert own[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in own) == choice.message.content
        assert [c.finish_reason for c in own if c.finish_reason] == [choice.finish_reason]
        told = [entry for c in own if c.logprobs for entry in c.logprobs.content]
        assert told == (choice.logprobs.content if choice.logprobs else [])
        ids = [id for c in own for id in getattr(c, "token_ids", ())]
        assert ids == getattr(choice, "token_ids", [])


def test_the_stream_ends_as_clients_expect(live):
    text = live.ask(stream=True, temperature=0, max_tokens=2).text
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(e.removeprefix("data: "))["object"] == "chat.completion.chunk" for e in events[:-2])


def test_the_usage_says_what_was_drafted_and_kept_and_the_official_client_reads_it(live):
    asked = {**GREEDY, "max_tokens": 40}
    stats = live.service.engine.engine.stats
    before = stats.drafted, stats.accepted
    told = [live.client.chat.completions.create(**asked).usage.model_extra["ling"] for _ in range(3)]
    streamed = live.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    told.append(list(streamed)[-1].usage.model_extra["ling"])
    assert all(own.keys() == {"drafted", "accepted"} and 0 <= own["accepted"] <= own["drafted"] for own in told), told
    assert sum(own["drafted"] for own in told) == stats.drafted - before[0] > 0
    assert 0 < sum(own["accepted"] for own in told) <= stats.accepted - before[1]


def test_the_usage_says_nothing_of_drafts_where_there_are_none():
    assert Usage([3], lambda: None).body.keys() == {
        "prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details",
    }  # fmt: skip


def test_the_usage_of_every_chunk_counts_up(live):
    options = {"include_usage": True, "continuous_usage_stats": True}
    text = live.ask(stream=True, temperature=0, max_tokens=4, stream_options=options).text
    chunks = [json.loads(e.removeprefix("data: ")) for e in text.split("\n\n")[:-2]]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 4


def test_logprobs_name_the_chosen_token_and_the_likeliest(live):
    answer = live.client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=2, max_tokens=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == 3
    for entry in content:
        assert len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].token == entry.token
        assert bytes(entry.bytes).decode() == entry.token
    assert "".join(entry.token for entry in content) == answer.choices[0].message.content
    without = live.client.chat.completions.create(**GREEDY, logprobs=True, max_tokens=1)
    assert without.choices[0].logprobs.content[0].top_logprobs == []


def test_the_same_seed_gives_the_same_text_and_another_gives_another(live):
    def text(seed):
        asked = {**GREEDY, "temperature": 2, "max_tokens": 20, "seed": seed}
        return live.client.chat.completions.create(**asked).choices[0].message.content

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_a_bias_on_a_token_bans_it(live):
    first = live.client.chat.completions.create(**GREEDY, max_tokens=1, logprobs=True).choices[0]
    (id,) = live.service.tokenizer.encode(first.message.content)
    banned = live.client.chat.completions.create(**GREEDY, max_tokens=1, logit_bias={str(id): -100}).choices[0]
    assert banned.message.content != first.message.content


def test_limits_and_stops_are_told_apart(live):
    asked = {**GREEDY, "extra_body": {"ignore_eos": True}}
    assert live.client.chat.completions.create(**asked, max_completion_tokens=2).choices[0].finish_reason == "length"
    forced = live.client.chat.completions.create(
        **{**GREEDY, "extra_body": {"min_tokens": 30}}, max_completion_tokens=40
    )
    assert forced.usage.completion_tokens >= 30
    comma = live.service.tokenizer.encode(" capital")[0]
    stopped = live.ask(temperature=0, stop_token_ids=[comma]).json()["choices"][0]
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", comma)


def test_prompts_cached_before_are_counted(live):
    text = "Tell me about the sea and the ships that sail on it, and about the sailors. " * 3
    messages = [{"role": "user", "content": text}]
    live.post(messages=messages, temperature=0, max_tokens=1)
    usage = live.post(messages=messages, temperature=0, max_tokens=1).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 16, usage
    salted = live.post(messages=messages, temperature=0, max_tokens=1, cache_salt="mine").json()["usage"]
    assert salted["prompt_tokens_details"]["cached_tokens"] == 0, salted


def test_special_tokens_in_a_message_stay_text(live):
    count = live.post("/tokenize", messages=[{"role": "user", "content": "<|role_end|>"}]).json()["count"]
    plain = live.post("/tokenize", messages=[{"role": "user", "content": ""}]).json()["count"]
    assert count > plain + 1


def test_thinking_is_chosen_by_the_template_options_alone(live):
    ids = {}
    for options in ({}, {"thinking": True}, {"enable_thinking": False}):
        answer = live.post(
            "/tokenize", messages=QUESTION, **({"chat_template_kwargs": options} if options else {})
        ).json()
        ids[str(options)] = live.service.tokenizer.decode(answer["tokens"])
    assert "thinking on" in ids["{'thinking': True}"]
    assert ids["{}"] == ids["{'enable_thinking': False}"] == rendered()
    refused = live.ask(chat_template_kwargs={"tokenize": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "chat_template_kwargs.tokenize")
    both = live.ask(chat_template_kwargs={"thinking": True, "enable_thinking": False})
    assert both.status_code == 400
