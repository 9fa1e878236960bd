"""A saved tokenizer says what the published one says and loads as it was; damage is reported clearly."""

import json

import pytest

from ling.errors import CheckpointError
from ling.tokenizer import Tokenizer
from ling.tokenizer.template import PRETRAIN_TEMPLATE, SFT_TEMPLATE
from tests.tokenizer.conftest import VOCAB_SIZE

BOS, EOD, ROLE_END = VOCAB_SIZE - 7, VOCAB_SIZE - 6, VOCAB_SIZE - 3
TEXT = "<role>HUMAN</role>床前明月光 def f(x): <|role_end|>"


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def saved(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "folder")
    return tmp_path / "new" / "folder"


def test_chat_configuration_is_the_published_one(saved):
    named = {
        "bos_token": "<|startoftext|>",
        "cls_token": "[CLS]",
        "eos_token": "<|role_end|>",
        "gmask_token": "[gMASK]",
        "pad_token": "<|endoftext|>",
    }
    assert read(saved / "special_tokens_map.json") == named
    assert read(saved / "tokenizer_config.json") == named | {
        "add_bos_token": False,
        "add_eos_token": False,
        "chat_template": SFT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1000000000000000019884624838656,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    assert read(saved / "generation_config.json") == {
        "bos_token_id": BOS,
        "eos_token_id": [EOD, ROLE_END],
        "pad_token_id": EOD,
        "do_sample": False,
    }


def test_pretrain_configuration_ends_at_the_document(tokenizer, tmp_path):
    tokenizer.save(tmp_path, chat=False)
    assert read(tmp_path / "special_tokens_map.json")["eos_token"] == "<|endoftext|>"
    assert read(tmp_path / "tokenizer_config.json")["chat_template"] == PRETRAIN_TEMPLATE
    assert read(tmp_path / "generation_config.json") == {
        "eos_token_id": EOD,
        "pad_token_id": EOD,
        "do_sample": False,
    }
    loaded = Tokenizer.from_directory(tmp_path)
    assert (loaded.eos_id, loaded.eod_id, loaded.stop_ids) == (EOD, EOD, (EOD,))
    assert not loaded.is_chat


def test_a_saved_tokenizer_loads_as_it_was(tokenizer, saved):
    loaded = Tokenizer.from_directory(saved)
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    assert loaded.encode(TEXT, special=False) == tokenizer.encode(TEXT, special=False)
    assert (loaded.eos_id, loaded.pad_id, loaded.bos_id) == (ROLE_END, EOD, BOS)
    assert loaded.stop_ids == tokenizer.stop_ids


def test_saving_twice_writes_the_same_bytes(saved, tmp_path):
    Tokenizer.from_directory(str(saved)).save(tmp_path)
    for path in saved.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_vocabulary_alone_is_a_chat_tokenizer(saved, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((saved / "tokenizer.json").read_bytes())
    assert Tokenizer.from_directory(tmp_path).stop_ids == (EOD, ROLE_END)


def test_tokens_written_as_objects_are_read(saved):
    config = read(saved / "tokenizer_config.json") | {"eos_token": {"content": "<|endoftext|>", "special": True}}
    (saved / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.from_directory(saved).eos_id == EOD


def test_special_tokens_map_fills_in_for_the_config(saved):
    (saved / "tokenizer_config.json").write_text("{}")
    (saved / "special_tokens_map.json").write_text('{"pad_token": "[CLS]"}')
    assert Tokenizer.from_directory(saved).pad_id == VOCAB_SIZE - 5


def test_further_stop_ids_survive(saved, tmp_path):
    (saved / "generation_config.json").write_text('{"eos_token_id": [5]}')
    Tokenizer.from_directory(saved).save(tmp_path)
    assert Tokenizer.from_directory(tmp_path).stop_ids == (5, EOD, ROLE_END)


def test_a_missing_directory_and_a_missing_file_are_told_apart(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no directory .*nowhere; give the one that holds"):
        Tokenizer.from_directory(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json; give the one that holds"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", b"{}", r"tokenizer\.json of .* cannot be read: .*\. Copy it again"),
        ("tokenizer.json", b"\xff", r"cannot read .*tokenizer\.json"),
        (
            "tokenizer_config.json",
            b"{",
            r"cannot read .*tokenizer_config\.json: .* Copy it again, or remove it",
        ),
        ("tokenizer_config.json", b"[]", r"must hold a JSON object, it holds a list"),
        ("tokenizer_config.json", b'{"eos_token": 3}', r"eos_token in .* must be a token's spelling, got 3"),
        ("tokenizer_config.json", b'{"eos_token": "<end>"}', r"names '<end>' as eos_token, but has no such"),
        ("special_tokens_map.json", b"\xff", r"cannot read .*special_tokens_map\.json"),
        (
            "generation_config.json",
            b'{"eos_token_id": "x"}',
            r"must be a token id or a list of them, got 'x'",
        ),
        ("generation_config.json", b'{"eos_token_id": [true]}', r"must be a token id or a list of them"),
        (
            "generation_config.json",
            b'{"eos_token_id": [156892]}',
            r"lists eos_token_id \[156892\] .* ends at 699",
        ),
    ],
)
def test_a_damaged_file_is_named(saved, file, content, message):
    (saved / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_directory(saved)


def test_a_place_that_cannot_be_written_is_named(tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write a tokenizer to .*file"):
        tokenizer.save(tmp_path / "file")
