"""Data sets by path and by `dataset_info.json`: what counts is read, what cannot be honoured is refused by name."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from ling.config.finetune import FinetuneConfig
from ling.errors import ConfigError, DataError
from ling.finetune.formats import AlpacaFormat, ChatFormat
from ling.finetune.sources import Source, find_sources

PUBLISHED = {
    "file_name": "a.jsonl",
    "formatting": "openai",
    "columns": {"messages": "messages", "tools": "tools"},
    "tags": {
        "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
        "observation_tag": "tool", "function_tag": "function_call", "system_tag": "system",
    },
}  # fmt: skip


@pytest.fixture
def find(tmp_path: Path) -> Any:
    (tmp_path / "a.jsonl").touch()

    def find(entry: Any, **settings: Any) -> Source:
        (tmp_path / "dataset_info.json").write_text(json.dumps({"set": entry}), encoding="utf-8")
        info = str(tmp_path / "dataset_info.json")
        (source,) = find_sources(FinetuneConfig(data=("set",), dataset_info=info, **settings))
        return source

    return find


def test_the_published_entry_is_understood(find: Any, tmp_path: Path) -> None:
    source = find(PUBLISHED)
    assert source.files == (tmp_path / "a.jsonl",)
    roles = {"user": "user", "assistant": "assistant", "tool": "tool", "function_call": "call", "system": "system"}
    assert source.format == ChatFormat(messages=("messages",), tools="tools", roles=roles, wrap_tools=True)


def test_an_entry_with_nothing_but_a_file_has_the_defaults_of_llamafactory(find: Any) -> None:
    assert find({"file_name": "a.jsonl"}).format == AlpacaFormat(history=None, system=None, tools=None)
    chat = find({"file_name": "a.jsonl", "formatting": "sharegpt"}).format
    assert (chat.messages, chat.role, chat.content, chat.tools) == (("conversations",), "from", "value", None)
    assert chat == find({"file_name": "a.jsonl", "formatting": "openai"}).format


def test_a_column_that_is_left_out_is_not_read_and_a_tag_keeps_its_default(find: Any) -> None:
    alpaca = find({"file_name": "a.jsonl", "columns": {"prompt": "q", "response": "a"}}).format
    assert alpaca == AlpacaFormat(prompt="q", query=None, response="a", history=None, system=None, tools=None)
    entry = {"file_name": "a.jsonl", "formatting": "sharegpt", "tags": {"user_tag": "me"}}
    assert set(find(entry).format.roles) == {"me", "gpt", "observation", "function_call", "system"}


def test_the_smaller_limit_of_samples_holds(find: Any) -> None:
    assert find(PUBLISHED | {"num_samples": 5}).max_records == 5
    assert find(PUBLISHED | {"num_samples": 5}, max_samples=3).max_records == 3
    assert find(PUBLISHED, max_samples=3).max_records == 3


def test_keys_that_nothing_reads_are_announced(find: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        find(PUBLISHED | {"colour": "red", "split": "train", "ranking": False})
    assert len(caplog.records) == 1
    assert "colour of set" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hf_hub_url": "x/y"}, r"lies elsewhere \(hf_hub_url\); download it, and give it a file_name"),
        ({"ranking": True}, "holds preferences"),
        ({"columns": {"messages": "m", "chosen": "c"}}, "holds preferences"),
        ({"columns": {"messages": "m", "images": "i"}}, "has images, which a model of text cannot read"),
        ({"columns": {"messages": "m", "massages": "x"}}, r"has columns\.massages, which openai does not know"),
        ({"columns": {"tools": "tools"}}, "leave out messages, without which nothing is read"),
        ({"columns": "messages"}, "columns of set in .* must be an object of names, got 'messages'"),
        ({"tags": {"usertag": "x"}}, r"has tags\.usertag, which openai does not know"),
        ({"tags": {"user_tag": "gpt"}}, "give two roles one name: gpt, gpt"),
        ({"formatting": "chatml"}, "formatting of set .* is 'chatml'; known: alpaca, sharegpt, openai"),
        ({"subset": "en"}, "subset of set .* belongs to data sets of a hub"),
        ({"split": "test"}, "split of set .* is 'test', but a file has no splits"),
        ({"num_samples": "9"}, "num_samples of set .* must be a number of samples, got '9'"),
        ({"file_name": None}, "needs a file_name"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(find: Any, change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find(PUBLISHED | change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "dataset_info.json is not JSON: Expecting"),
        ("[]", "must be an object of data sets, not"),
        ('{"other": {}}', "has no data set set; it has other"),
        ('{"set": 3}', "set in .*dataset_info.json must be an object, got 3"),
        (None, "cannot read finetune.dataset_info .*: No such file"),
    ],
)
def test_a_damaged_dataset_info_is_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "dataset_info.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        find_sources(FinetuneConfig(data=("set",), dataset_info=str(path)))


def test_a_directory_stands_for_its_files_by_name(tmp_path: Path) -> None:
    for name in ("b.jsonl.gz", "a.JSON", "c.parquet", "README.md"):
        (tmp_path / name).touch()
    (source,) = find_sources(FinetuneConfig(data=(str(tmp_path),)))
    assert [file.name for file in source.files] == ["a.JSON", "b.jsonl.gz", "c.parquet"]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((), ConfigError, "finetune.data names no data; give files"),
        (("no.jsonl",), DataError, "there is no data file no.jsonl"),
        ((__file__,), DataError, r"test_sources.py ends in none of \.jsonl, \.json, \.parquet; convert it to jsonl"),
        (("x", "x"), ConfigError, "names a data set twice: x, x"),
    ],
)
def test_a_path_that_is_no_data_is_one_line(data: tuple[str, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        find_sources(FinetuneConfig(data=data))


def test_an_empty_directory_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no file that ends in"):
        find_sources(FinetuneConfig(data=(str(tmp_path),)))
