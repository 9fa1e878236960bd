"""`/v1/completions` and the tokenizer's routes, as lm-evaluation-harness uses them."""

import math

import pytest

PROMPT = "Alice was beginning to get very tired"


def test_echo_judges_the_prompt_as_the_harness_reads_it(live):
    answer = live.post("/v1/completions", prompt=PROMPT, echo=True, logprobs=1, max_tokens=1, temperature=0).json()
    (choice,) = answer["choices"]
    told = choice["logprobs"]
    ids = live.service.tokenizer.encode(PROMPT)
    assert len(told["tokens"]) == len(ids) + 1 == len(told["top_logprobs"]) == len(told["token_logprobs"])
    assert "".join(told["tokens"]) == choice["text"]
    assert choice["text"].startswith(PROMPT)
    assert told["token_logprobs"][0] is None
    assert told["top_logprobs"][0] is None
    for logprob, top in zip(told["token_logprobs"][1:], told["top_logprobs"][1:]):
        assert logprob <= max(top.values())
        assert logprob in top.values()
    assert told["text_offset"] == [len("".join(told["tokens"][:i])) for i in range(len(told["tokens"]))]


def test_a_prompt_is_judged_alike_as_text_and_as_ids_alone_and_in_a_list(live):
    ids = live.service.tokenizer.encode(PROMPT)
    asked = {"echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}

    def judged(prompt):
        choices = live.post("/v1/completions", prompt=prompt, **asked).json()["choices"]
        return [choice["logprobs"]["token_logprobs"] for choice in choices], [choice["text"] for choice in choices]

    logprobs, texts = judged(PROMPT)
    for prompt in (ids, [PROMPT], [ids], ["One day", PROMPT], [[5, 6, 7], ids]):
        others, other_texts = judged(prompt)
        assert other_texts[-1] == texts[0]
        close = (a == b or math.isclose(a, b, abs_tol=1e-4) for a, b in zip(others[-1], logprobs[0], strict=True))
        assert all(close)


def test_without_room_for_an_answer_only_the_prompt_is_judged(live):
    answer = live.post("/v1/completions", prompt=PROMPT, echo=True, logprobs=0, max_tokens=0).json()
    (choice,) = answer["choices"]
    assert choice["text"] == PROMPT
    assert len(choice["logprobs"]["tokens"]) == answer["usage"]["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == 0
    assert live.post("/v1/completions", prompt=PROMPT, max_tokens=0).status_code == 400


@pytest.mark.parametrize(
    "extra",
    [
        {"prompt": PROMPT},
        {"prompt": [PROMPT, "One day"], "n": 2, "seed": 3, "temperature": 1},
        {"prompt": PROMPT, "echo": True, "logprobs": 2, "n": 2},
        {"prompt": [PROMPT, "One day"], "echo": True, "logprobs": 0},
        {"prompt": PROMPT, "extra_body": {"prompt_logprobs": 1, "return_token_ids": True}},
        {"prompt": PROMPT, "stop": "e", "logprobs": 1},
    ],
)
def test_a_streamed_completion_is_the_whole_one(live, extra):
    asked = {"model": "auto", "max_tokens": 8, "temperature": 0, **extra}
    whole = live.client.completions.create(**asked)
    chunks = list(live.client.completions.create(**asked, stream=True))
    assert len(whole.choices) == len({choice.index for choice in whole.choices})
    for choice in whole.choices:
        own = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(c.text for c in own) == choice.text
        assert [c.finish_reason for c in own if c.finish_reason] == [choice.finish_reason]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            told = [entry for c in own if c.logprobs for entry in getattr(c.logprobs, name)]
            assert told == (getattr(choice.logprobs, name) if choice.logprobs else []), name
        assert [id for c in own for id in getattr(c, "token_ids", ())] == getattr(choice, "token_ids", [])
        judged = [c.prompt_logprobs for c in own if getattr(c, "prompt_logprobs", None)]
        assert judged == ([choice.prompt_logprobs] if getattr(choice, "prompt_logprobs", None) else [])


def test_tokens_can_be_named_by_their_ids(live):
    answer = live.post("/v1/completions", prompt=PROMPT, max_tokens=2, logprobs=1, return_tokens_as_token_ids=True,
                       return_token_ids=True).json()  # fmt: skip
    (choice,) = answer["choices"]
    assert choice["logprobs"]["tokens"] == [f"token_id:{id}" for id in choice["token_ids"]]
    assert choice["prompt_token_ids"] == live.service.tokenizer.encode(PROMPT)


def test_the_tokenizer_is_there_for_clients(live):
    told = live.http.get("/tokenizer_info").json()
    assert told["eos_token"] == "<|role_end|>"
    assert "<role>" in told["chat_template"]
    tokens = live.post("/tokenize", prompt=PROMPT, add_special_tokens=False).json()
    assert tokens["count"] == len(tokens["tokens"])
    assert live.post("/detokenize", tokens=tokens["tokens"]).json() == {"prompt": PROMPT}
    spelt = live.post("/tokenize", prompt=PROMPT, return_token_strs=True).json()["token_strs"]
    assert "".join(spelt) == PROMPT
    ends = live.post("/tokenize", prompt="<|role_end|>").json()
    assert ends["count"] == 1


def test_one_prompt_too_many_is_refused_and_none_is_run(live):
    for prompt in ([], [PROMPT] * 65, [PROMPT, ""], [PROMPT, [1]], "", [-1], [10**6], [True]):
        answer = live.post("/v1/completions", prompt=prompt)
        named = answer.json()["error"]["param"].partition("[")[0]
        assert (answer.status_code, named) == (400, "prompt"), prompt


def test_a_small_request_cannot_ask_for_a_huge_answer(live):
    prompts = {"prompt": [[5] * 500] * 64, "max_tokens": 1}
    answer = live.post("/v1/completions", **prompts, echo=True, logprobs=20, n=16)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "logprobs")
    assert "10752000 log-probabilities" in answer.json()["error"]["message"]
    assert live.post("/v1/completions", prompt=[5] * 500, max_tokens=1, echo=True, logprobs=20, n=2).status_code == 200


def test_every_answer_begins_with_its_judged_prompt(live):
    choices = live.post("/v1/completions", prompt=PROMPT, echo=True, logprobs=2, n=3, max_tokens=1).json()["choices"]
    length = len(live.service.tokenizer.encode(PROMPT))
    assert len({str(choice["logprobs"]["top_logprobs"][:length]) for choice in choices}) == 1
    assert [len(choice["logprobs"]["tokens"]) for choice in choices] == [length + 1] * 3
