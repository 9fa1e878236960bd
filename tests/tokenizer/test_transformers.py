"""A saved tokenizer, loaded by transformers, gives our ids and our prompts."""

import importlib.util

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling.tokenizer import Tokenizer, encode_chat, render
from tests.tokenizer import chats
from tests.tokenizer.conftest import VOCAB_SIZE

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="transformers is not installed (pip install ling[hf])",
)


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    directories = {"sft": tmp_path_factory.mktemp("sft"), "pretrain": tmp_path_factory.mktemp("pretrain")}
    for template, directory in directories.items():
        tokenizer.save(directory, chat=template == "sft")
    return directories


@pytest.fixture(scope="module")
def theirs(saved):
    from transformers import AutoTokenizer

    return {template: AutoTokenizer.from_pretrained(directory) for template, directory in saved.items()}


@settings(deadline=None)
@given(text=st.text() | chats.text)
def test_ids_and_texts_are_the_same(tokenizer, theirs, text):
    ids = theirs["sft"](text)["input_ids"]
    assert ids == tokenizer.encode(text)
    assert theirs["sft"].decode(ids) == text
    assert theirs["sft"].decode(ids, skip_special_tokens=True) == tokenizer.decode(ids, skip_special=True)


def test_named_tokens_are_the_same(tokenizer, saved, theirs):
    for template, directory in saved.items():
        ours, other = Tokenizer.from_directory(directory), theirs[template]
        assert (ours.bos_id, ours.eos_id, ours.pad_id) == (
            other.bos_token_id, other.eos_token_id, other.pad_token_id
        )  # fmt: skip
        assert len(other) == ours.vocab_size == VOCAB_SIZE
        assert other.all_special_ids


@pytest.mark.parametrize("case", [case for case in chats.GOLDEN if case.rendered is not None], ids=str)
def test_golden_chats_render_exactly(theirs, case):
    assert theirs[case.template].apply_chat_template(case.messages, tokenize=False, **case.options) == case.rendered


@settings(deadline=None)
@given(messages=chats.chats(chats.plain_text), add_generation_prompt=st.booleans())
def test_chats_are_the_same(tokenizer, theirs, messages, add_generation_prompt):
    options = {"add_generation_prompt": add_generation_prompt}
    assert theirs["sft"].apply_chat_template(messages, tokenize=False, **options) == render(messages, **options)
    ids = theirs["sft"].apply_chat_template(messages, return_dict=True, **options)["input_ids"]
    assert ids == encode_chat(tokenizer, messages, **options)[0]


def test_what_transformers_saves_loads_here(tokenizer, theirs, tmp_path):
    theirs["sft"].save_pretrained(tmp_path)
    loaded = Tokenizer.from_directory(tmp_path)
    assert loaded.stop_ids == tokenizer.stop_ids
    assert loaded.encode("<role>上海 x") == tokenizer.encode("<role>上海 x")
