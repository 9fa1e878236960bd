"""From files to samples and sequences: every record is accounted for, and everything can be done again."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ling.config.finetune import FinetuneConfig
from ling.data.documents import Document
from ling.errors import ConfigError, DataError
from ling.finetune.prepare import Prepared, prepare
from ling.finetune.report import Report
from ling.finetune.sequences import ChatSequences
from ling.tokenizer import Tokenizer, encode_chat


def record(number: int, words: int = 1) -> dict[str, Any]:
    answer = {"role": "assistant", "content": f"{number} " * words}
    return {"messages": [{"role": "user", "content": f"say {number}"}, answer]}


@pytest.fixture
def read(tokenizer: Tokenizer) -> Callable[..., Prepared]:
    def read(*data: str, length: int = 128, **settings: Any) -> Prepared:
        return prepare(FinetuneConfig(data=data, **settings), tokenizer, sequence_length=length)

    return read


def documents(prepared: Prepared) -> list[Document]:
    return [prepared.store.document(sample) for sample in range(len(prepared.store))]


def test_every_record_is_a_sample_or_stands_in_the_report(read: Any, write: Any, tokenizer: Tokenizer) -> None:
    path = write(record(0), "{", "", record(1) | {"id": 1}, record(2, 200), {"messages": []}, record(3))
    prepared = read(path)
    report = prepared.report
    assert (report.read, report.kept, report.num_skipped) == (6, 3, 3)
    assert [str(one).removeprefix(path) for one in report.skipped] == [
        ":2: damaged record: Expecting property name enclosed in double quotes at character 2",
        ":5: too long: 424 tokens, and at most 128 are taken",
        ":6: no conversation: the list of messages has length 0; two are needed",
    ]
    assert report.reasons == {"damaged record": 1, "too long": 1, "no conversation": 1}
    assert report.ignored_keys == {"id": 1}
    assert [prepared.store.where(n) for n in range(3)] == [f"{path}:{line}" for line in (1, 4, 7)]
    expected = [Document(*encode_chat(tokenizer, record(n)["messages"])) for n in (0, 1, 3)]
    assert documents(prepared) == expected
    assert report.tokens == sum(len(d.tokens) for d in expected)
    assert report.learnt_tokens == sum(sum(d.learnt) for d in expected)
    assert Report.from_tree(json.loads(json.dumps(report.tree()))) == report


def test_whatever_bytes_are_damaged_every_line_is_accounted_for(read: Any, tmp_path: Path) -> None:
    path, draw = tmp_path / "a.jsonl", random.Random(0)
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}
    chat = {"messages": [{"role": "user", "content": "上海"}, call], "tools": [{"name": "f"}], "thinking": "on"}
    whole = b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in [chat, record(1)] * 20)
    kept = []
    for _ in range(30):
        content = bytearray(whole)
        for _ in range(40):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content)
        report = read(str(path)).report
        kept.append(report.kept)
        lines = [line for line in bytes(content).split(b"\n") if line.strip(b" \t\r\n")]
        assert report.read == report.kept + len(report.skipped) == len(lines)
    assert 0 < min(kept) < max(kept) < 40


def test_the_number_of_processes_changes_nothing(read: Any, write: Any) -> None:
    paths = [write(*(record(n, n % 90) for n in range(150)), "{", name=name) for name in ("a.jsonl", "b.jsonl")]
    alone, together = read(*paths), read(*paths, workers=2)
    assert documents(alone) == documents(together)
    assert alone.report == together.report
    assert alone.store.fingerprint == together.store.fingerprint


def test_a_limit_of_samples_counts_records_of_each_data_set(read: Any, write: Any, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for name in "ab":
        write(record(1), "{", record(2), name=f"many/{name}.jsonl")
    one = write(record(3), name="one.jsonl")
    prepared = read(str(tmp_path / "many"), one, max_samples=4)
    assert (prepared.report.read, prepared.report.kept) == (5, 4)
    assert [Path(prepared.store.where(n)).name for n in range(4)] == [
        "a.jsonl:1",
        "a.jsonl:3",
        "b.jsonl:1",
        "one.jsonl:1",
    ]


def test_samples_are_held_out_by_their_text_alone(read: Any, write: Any) -> None:
    first = read(write(*map(record, range(200))), heldout_percent=20)
    held = {tuple(first.store.document(n).tokens) for n in first.heldout}
    assert 20 < len(held) < 60
    assert first.report.heldout == len(held) == 200 - len(first.training)
    second = read(write(*map(record, range(50, 250))), heldout_percent=20)
    moved = {tuple(second.store.document(n).tokens) for n in second.training}
    assert not held & moved


# ---- the cache ----


def test_a_cache_gives_the_same_and_is_made_anew_when_anything_changes(
    read: Any, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = write(record(0), "{", record(1)), str(tmp_path / "cache")
    plain, made = read(path), read(path, cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr("ling.finetune.work.render_sample", None)  # nothing is rendered again
        found = read(path, cache=cache)
    for other in (made, found):
        assert documents(other) == documents(plain)
        assert other.report == plain.report
        assert other.store.fingerprint == plain.store.fingerprint
        assert [other.store.where(n) for n in range(2)] == [plain.store.where(n) for n in range(2)]
    assert len(read(path, cache=cache, thinking="on").store) == 2
    assert documents(read(path, cache=cache, end_of_text=True)) != documents(plain)
    assert len(read(write(record(0)), cache=cache).store) == 1


def test_a_damaged_cache_is_made_anew(read: Any, write: Any, tmp_path: Path) -> None:
    path, cache = write(record(0), record(1)), tmp_path / "cache"
    expected = documents(read(path, cache=str(cache)))
    for name in ("tokens.bin", "learnt.bin", "samples.npy", "meta.json"):
        for content in (b"", b"1234"):
            (cache / name).write_bytes(content)
            assert documents(read(path, cache=str(cache))) == expected, (name, content)
        (cache / name).unlink()
        if name != "meta.json":
            assert documents(read(path, cache=str(cache))) == expected, name


def test_a_directory_that_is_no_cache_is_left_alone(read: Any, write: Any, tmp_path: Path) -> None:
    path = write(record(0))
    with pytest.raises(DataError, match="holds something else; choose a directory of its own"):
        read(path, cache=str(tmp_path))
    assert Path(path).exists()


# ---- mistakes ----


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "train.jsonl: no record in it"),
        (
            ["{", "[]"],
            r"none of the 2 records in .*train.jsonl can be learnt from; the first: .*train.jsonl:1: damaged",
        ),
    ],
)
def test_data_without_a_sample_is_one_line(
    read: Any, write: Any, tmp_path: Path, lines: list[str], message: str
) -> None:
    for cache in (None, str(tmp_path / "cache")):
        with pytest.raises(DataError, match=message):
            read(write(*lines), cache=cache)
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


# ---- sequences ----


@pytest.fixture
def sequences(read: Any, write: Any) -> Callable[..., ChatSequences]:
    prepared = read(write(*(record(n, 1 + n * 7 % 20) for n in range(60))))

    def build(length: int = 128, seed: int = 0, packing: bool = True) -> ChatSequences:
        return ChatSequences(prepared.store, prepared.training, sequence_length=length, seed=seed, packing=packing)

    return build


def test_an_epoch_holds_each_sample_once_in_sequences_that_fit(sequences: Any) -> None:
    for packing in (True, False):
        chosen = sequences(packing=packing)
        for epoch in range(3):
            indices = range(epoch * len(chosen), (epoch + 1) * len(chosen))
            assert sorted(int(s) for i in indices for s in chosen.samples(i)) == list(range(60))
            assert all(sum(len(d.tokens) for d in chosen.sequence(i)) <= 128 for i in indices)
    assert len(sequences(packing=False)) == 60
    assert len(sequences()) < 40
    filled = sum(len(d.tokens) for i in range(len(sequences())) for d in sequences().sequence(i))
    assert sequences().padding_percent == pytest.approx(100 - 100 * filled / (128 * len(sequences())))


def test_a_sequence_depends_on_its_number_and_the_seed_alone(sequences: Any) -> None:
    ahead, fresh = sequences(), sequences()
    read = [ahead.sequence(i) for i in range(3 * len(ahead))]
    for index in (2 * len(fresh) + 1, 0, len(fresh)):
        assert fresh.sequence(index) == read[index]
    assert read[: len(ahead)] != read[len(ahead) : 2 * len(ahead)]
    assert [sequences(seed=1).sequence(i) for i in range(5)] != read[:5]
    assert sequences().fingerprint == ahead.fingerprint
    assert len({sequences(seed=s, length=n).fingerprint for s in (0, 1) for n in (128, 256)}) == 4


def test_samples_longer_than_a_sequence_are_refused_with_their_place(sequences: Any) -> None:
    with pytest.raises(ConfigError, match=r"the sample at .*train.jsonl:\d+ has \d+ tokens and a sequence 64; lower"):
        sequences(length=64)


def test_no_samples_are_refused(read: Any, write: Any) -> None:
    store = read(write(record(0))).store
    with pytest.raises(DataError, match="no sample is left"):
        ChatSequences(store, np.array([], np.int64), sequence_length=64, seed=0)
