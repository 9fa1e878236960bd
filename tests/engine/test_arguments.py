"""What people pass for numbers, lists and prompts: taken if it is clear, refused in one line if it is not."""

import re

import numpy as np
import pytest
import torch

from ling.engine.arguments import conversations
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams
from ling.errors import RequestError
from ling.testing.models import tiny_model
from ling.testing.text import IdTokenizer

ENGINE = LLM(tiny_model(seed=1), IdTokenizer(128), drafting="none")
IDS = [5, 6, 7]
USER = {"role": "user", "content": "x"}


def tokens(prompts, **params) -> list[list[int]]:
    given = SamplingParams(**{"max_tokens": 4, "seed": 3, **params})
    return [r.outputs[0].token_ids for r in ENGINE.generate(prompts, given)]


@pytest.mark.parametrize(
    "prompt",
    [
        tuple(IDS),
        range(5, 8),
        np.array(IDS),
        torch.tensor(IDS),
        list(np.array(IDS)),
        [np.array(IDS)],
        [tuple(IDS)],
        {"prompt_token_ids": np.array(IDS)},
        {"prompt_token_ids": None, "prompt": "5 6 7"},
        (p for p in ["5 6 7"]),
    ],
    ids=lambda prompt: type(prompt).__name__,  # a generator's repr is another in each test process
)
def test_a_prompt_comes_in_many_clothes(prompt) -> None:
    assert tokens(prompt) == tokens([IDS])


def test_an_array_of_rows_is_several_prompts() -> None:
    assert tokens(np.array([IDS, IDS])) == tokens([IDS, IDS])


@pytest.mark.parametrize(
    "prompt", [None, 5, b"abc", [None], {}, {"prompt": 5}, [1.0], [[True]], {"prompt_token_ids": "5"}], ids=repr
)
def test_what_is_no_prompt_is_refused_in_one_line(prompt) -> None:
    with pytest.raises(RequestError, match=r"must be a|is not in a vocabulary"):
        tokens(prompt)


@pytest.mark.parametrize(
    ("messages", "tools", "message"),
    [
        ([USER], [[], []], "a list of tools for each conversation needs several conversations"),
        ([[USER], [USER]], [[]], "2 conversations need as many lists of tools, got 1"),
        ([[USER]], 5, "tools must be a list, got 5"),
        ([[USER]], {"type": "function"}, "tools must be a list, got {'type'"),
        ([[USER]], ["search"], "tools must be a list, got 'search'"),
        ("hello", None, "messages must be a list, got 'hello'"),
        (None, None, "messages must be a list, got None"),
        (USER, None, "messages must be a list, got {'role'"),
        ([[USER], "hello"], None, "a conversation must be a list, got 'hello'"),
        ([USER, "hello"], None, "message 1 must be an object, got str"),
        ([[]], None, "a chat needs at least one message"),
    ],
)
def test_what_is_no_conversation_is_refused_in_one_line(messages, tools, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)) as refused:
        ENGINE.chat(messages, tools=tools)
    assert "\n" not in str(refused.value)


def test_each_conversation_has_its_own_tools_or_all_have_the_same() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    pair = [[USER], (USER, USER)]
    both = [[USER], [USER, USER]]
    assert conversations(pair, None) == [(both[0], []), (both[1], [])]
    assert conversations(pair, [tool]) == [(both[0], [tool]), (both[1], [tool])]
    assert conversations(pair, [[tool], None]) == [(both[0], [tool]), (both[1], [])]
    assert conversations((USER,), []) == [([USER], [])]
    assert conversations([], None) == []


def test_numbers_of_numpy_are_numbers() -> None:
    plain = {"seed": 7, "top_k": 9, "top_p": 0.5, "logprobs": 2, "stop_token_ids": [9], "logit_bias": {5: 1.0}}
    odd = {"seed": np.int64(7), "top_k": np.int32(9), "top_p": np.float32(0.5), "logprobs": np.int8(2),
           "stop_token_ids": np.array([9]), "logit_bias": {np.int64(5): np.float64(1.0)}}  # fmt: skip
    assert SamplingParams(**odd) == SamplingParams(**plain)
    assert tokens([IDS], **odd) == tokens([IDS], **plain)


def test_none_is_no_list_and_no_limit() -> None:
    params = SamplingParams(stop=None, stop_token_ids=None, logit_bias=None, max_tokens=None, min_tokens=9)
    assert (params.stops, params.stop_token_ids, params.logit_bias) == ((), (), {})
    (all_of_it,) = tokens([IDS], max_tokens=None, ignore_eos=True)
    assert len(all_of_it) == ENGINE.engine.max_model_len - len(IDS)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_tokens": 3.5}, "max_tokens must be a whole number, got 3.5"),
        ({"max_tokens": True}, "max_tokens must be a whole number, got True"),
        ({"logprobs": True}, "logprobs must be a whole number, got True"),
        ({"seed": "3"}, "seed must be a whole number, got '3'"),
        ({"n": None}, "n must be a whole number, got None"),
        ({"temperature": None}, "temperature must be a number, got None"),
        ({"top_p": "0.5"}, "top_p must be a number, got '0.5'"),
        ({"stop": 5}, "stop must be a text or a list of texts, got 5"),
        ({"stop": [5]}, r"stop must be a text or a list of texts, got \[5\]"),
        ({"stop_token_ids": 5}, "stop_token_ids must be a list of token ids, got 5"),
        ({"logit_bias": [5]}, "logit_bias must map token ids to numbers"),
        ({"logit_bias": {"5": 1}}, "a token id of logit_bias must be a whole number, got '5'"),
        ({"structured_outputs": {"json": {}}}, "structured_outputs must be StructuredOutputsParams"),
    ],
)
def test_values_of_a_wrong_type_are_named(params: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(**params)


def test_parameters_as_a_dictionary_are_refused() -> None:
    with pytest.raises(RequestError, match="sampling_params must be SamplingParams"):
        ENGINE.generate([IDS], {"max_tokens": 3})
