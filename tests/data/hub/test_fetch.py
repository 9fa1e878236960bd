"""Data sets through a stand-in for the hub: only what is needed is downloaded, found again, and how failures read."""

import json
import logging
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from tests.hub.fake_hub import COMMIT, CONVERTED_COMMIT, FakeHub, needs_kept_listings, point_to, running

from ling.data.hub import fetch_texts
from ling.errors import ConfigError, DataError

NAME = "hf://owner/tiny"
CARD = """---
configs:
- config_name: en
  default: true
  data_files: [{split: train, path: en/train-*}, {split: test, path: en/test.jsonl}]
- config_name: de
  data_files: de/*.jsonl
---
"""


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    (tmp_path / "empty").mkdir()
    fake = FakeHub(tmp_path / "empty", "dataset")
    fake.files = {
        "README.md": CARD.encode(),
        "en/train-0.jsonl": lines("one", "two"),
        "en/train-1.jsonl": lines("three"),
        "en/test.jsonl": lines("four"),
        "de/all.jsonl": lines("fünf"),
        "code.py": b"raise SystemExit",
    }
    with running(fake):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        point_to(monkeypatch, fake.url)
        yield fake


def test_only_the_files_of_a_split_are_downloaded(hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = fetch_texts(NAME)
    assert [file.read_bytes() for file in found.files] == [hub.files["en/train-0.jsonl"], hub.files["en/train-1.jsonl"]]
    assert found.names == [f"{NAME}@{COMMIT}/en/train-0.jsonl", f"{NAME}@{COMMIT}/en/train-1.jsonl"]
    assert not any(hub.got(name) for name in ("en/test.jsonl", "de/all.jsonl", "code.py"))
    assert f"owner/tiny at commit {COMMIT[:12]}: subset en, split train, 2 files" in caplog.text


def test_subset_split_and_path_choose(hub: FakeHub) -> None:
    assert [file.name for file in fetch_texts(NAME, split="test").files] == ["test.jsonl"]
    assert [file.name for file in fetch_texts(NAME, subset="de").files] == ["all.jsonl"]
    assert [file.name for file in fetch_texts(f"{NAME}/en").files] == ["test.jsonl", "train-0.jsonl", "train-1.jsonl"]
    assert [file.name for file in fetch_texts("hf://datasets/owner/tiny@main/**/train-1*").files] == ["train-1.jsonl"]


def test_the_name_written_down_gives_the_same_file(hub: FakeHub) -> None:
    found = fetch_texts(NAME)
    assert fetch_texts(found.names[1]).files == found.files[1:]


def test_a_download_that_breaks_goes_on_and_is_not_done_twice(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    hub.files["en/train-1.jsonl"] = lines("x" * 5000)
    hub.cut["en/train-1.jsonl"] = 1000
    fetch_texts(NAME)
    assert [line.endswith("bytes=1000-") for line in hub.got("en/train-1.jsonl")] == [False, True]
    hub.requests.clear()
    fetch_texts(NAME)
    assert not hub.got("en/")


@needs_kept_listings
def test_the_cache_is_enough_offline_for_what_was_downloaded(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fetch_texts(NAME)
    hub.requests.clear()
    assert fetch_texts(NAME, offline=True) == found
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_texts(found.names[0]).files == found.files[:1]
    with pytest.raises(
        DataError, match=r"1 of 1 files of owner/tiny are not in the hub's cache, such as de/all\.jsonl"
    ):
        fetch_texts(NAME, subset="de")
    for name in (f"{NAME}@v2", "hf://owner/other"):
        with pytest.raises(DataError, match="is not in the hub's cache, and this is offline: run the same command"):
            fetch_texts(name)
    assert hub.requests == []


def test_an_old_client_says_that_it_cannot_do_without_a_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch_texts(NAME)
    names = {name: getattr(huggingface_hub, name) for name in ("snapshot_download", "HfApi", "hf_hub_download")}
    monkeypatch.setattr("ling.data.hub.fetch.client", lambda: types.SimpleNamespace(**names))
    assert fetch_texts(NAME).files
    with pytest.raises(ConfigError, match="pip install --upgrade huggingface_hub"):
        fetch_texts(NAME, offline=True)


@needs_kept_listings
def test_files_of_other_formats_are_taken_as_the_hub_converted_them(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("ling.data.parquet.library", lambda what: None)
    hub.files = {"train.csv": b"text\none\n" * 20, "README.md": b"# Words", "code.py": b""}
    with pytest.raises(DataError, match=r"holds \.csv, of which nothing is read .* no conversion .* no such revision"):
        fetch_texts(NAME)
    hub.converted = {"default/train/0000.parquet": b"PAR1", "default/test/0000.parquet": b"PAR1"}
    found = fetch_texts(NAME)
    assert found.names == [f"{NAME}@{CONVERTED_COMMIT}/default/train/0000.parquet"]
    assert "taking what the hub converted to parquet, refs/convert/parquet" in caplog.text
    assert fetch_texts(NAME, offline=True) == found
    assert fetch_texts(f"{NAME}@refs/convert/parquet") == found
    with pytest.raises(DataError, match=r"holds \.csv, of which nothing is read here"):
        fetch_texts(f"{NAME}@main")  # what was converted is the newest
    with pytest.raises(
        ConfigError, match=r"owner/tiny@refs/convert/parquet, subset default has no split 'dev'; it has"
    ):
        fetch_texts(NAME, split="dev")
    hub.files = {"code.py": b"", "README.md": b"---\nconfigs: [{config_name: en, default: true}]\n---"}
    hub.converted = {f"{subset}/train/0000.parquet": b"PAR1" for subset in ("en", "de")}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "2")
    for subset, name in ((None, "en"), ("de", "de")):
        assert fetch_texts(NAME, subset=subset).names[0].endswith(f"/{name}/train/0000.parquet")


def test_parquet_without_its_library_is_said_before_the_download(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = {"train.parquet": b"PAR1"}
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r'owner/tiny: parquet needs pyarrow; pip install "ling\[parquet\]"'):
        fetch_texts(NAME)
    assert not hub.got("train.parquet")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf://owner/none", "owner/none is no data set, or none that you may see, on http://127.0.0.1"),
        ("hf://owner/gated", "owner/gated is gated: accept its terms on http://127.0.0.1"),
        (f"{NAME}@v9", "owner/tiny has no such revision"),
        (f"{NAME}/fr/*.jsonl", r"has no fr/\*\.jsonl; it holds README\.md, code\.py, de, en"),
    ],
)
def test_refusals_are_one_line(hub: FakeHub, name: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        fetch_texts(name)
    assert "\n" not in str(caught.value)


def test_a_gated_data_set_lists_its_files_and_keeps_them(hub: FakeHub) -> None:
    hub.gated = True
    with pytest.raises(DataError, match=r"owner/tiny is gated: accept its terms on .*, then log in with hf auth login"):
        fetch_texts(NAME)


def test_a_path_and_a_split_contradict_each_other(hub: FakeHub) -> None:
    with pytest.raises(ConfigError, match="names files by a path; --subset and --split choose where there is none"):
        fetch_texts(f"{NAME}/en", split="test")
    assert hub.requests == []


def test_a_file_of_another_size_is_found(hub: FakeHub) -> None:
    file = fetch_texts(NAME).files[0]
    file.resolve().write_bytes(b"{}")
    with pytest.raises(DataError, match=r"train-0\.jsonl has 2 bytes, the hub's \d+: delete .* run the same command"):
        fetch_texts(NAME)


def test_no_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    point_to(monkeypatch, "http://127.0.0.1:1")
    with pytest.raises(
        DataError, match=r"cannot download owner/tiny from http://127\.0\.0\.1:1 \(.*refused.* --offline"
    ):
        fetch_texts(NAME)
