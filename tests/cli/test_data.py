"""`ling data`, and training on what it makes."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from tests.hub.fake_hub import COMMIT, FakeHub, needs_kept_listings, point_to, running

TEXTS = ["The capital of France is Paris. " * 20, "One and one are two.", "Ling learns quickly. " * 30]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    records = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("\n".join([*records, '{"other": 1}', "{"]) + "\n")
    return tmp_path / "a.jsonl"


@pytest.fixture
def made(ling: Any, source: Path, tmp_path: Path) -> Path:
    done = ling("data", "prepare", str(source), "--out", str(tmp_path / "tokens"))
    assert done.code == 0, done.err
    assert done.out.split() == [str(tmp_path / "tokens")]
    assert "3 documents" in done.err
    assert "left out: 1 records: no text under the key 'text'" in done.err
    assert "left out: 1 records: damaged record" in done.err
    return tmp_path / "tokens"


def test_info_says_what_is_there(ling: Any, made: Path) -> None:
    done = ling("data", "info", str(made))
    assert done.code == 0
    assert "documents:  3" in done.out
    assert "sources: ['a.jsonl']" in done.out
    assert "document 1: 'One and one are two.<|endoftext|>'" in done.out


def test_processes_change_nothing(ling: Any, source: Path, made: Path, tmp_path: Path) -> None:
    done = ling("data", "prepare", str(source), "--out", str(tmp_path / "again"), "--workers", "2")
    assert done.code == 0, done.err
    for name in ("tokens.bin", "tokens.idx", "tokens.json"):
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("prepare {tmp}/none.jsonl --out {tmp}/x", "there is no data file"),
        ("prepare {tmp}/a.jsonl --out {tmp}/tokens", "exists already"),
        ("prepare {tmp}/a.jsonl --key body --out {tmp}/x", "there is no document in"),
        ("prepare {tmp}/a.bin --out {tmp}/x", "there is no data file"),
        ("info {tmp}/none", "cannot read token file"),
    ],
)
def test_mistakes_are_one_line(ling: Any, made: Path, tmp_path: Path, arguments: str, message: str) -> None:
    done = ling("data", *arguments.format(tmp=tmp_path).split())
    assert done.code == 2
    assert message in done.err.splitlines()[-1]
    assert not (tmp_path / "x").exists()


@pytest.fixture
def hub(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A data set whose train split is `source` and its test split another text, packed."""
    (tmp_path / "empty").mkdir()
    fake = FakeHub(tmp_path / "empty", "dataset")
    packed = gzip.compress(b'{"text": "A test."}\n')
    fake.files = {"README.md": b"# Texts", "train.jsonl": source.read_bytes(), "test.json.gz": packed}
    with running(fake):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        point_to(monkeypatch, fake.url)
        yield fake


def test_a_data_set_on_the_hub_becomes_the_same_tokens(ling: Any, hub: FakeHub, made: Path, tmp_path: Path) -> None:
    done = ling("data", "prepare", "hf://owner/tiny", "--out", tmp_path / "again")
    assert done.code == 0, done.err
    assert "split train, 1 files" in " ".join(done.err.split())
    assert (tmp_path / "again/tokens.bin").read_bytes() == (made / "tokens.bin").read_bytes()
    assert f"sources: ['hf://owner/tiny@{COMMIT}/train.jsonl']" in ling("data", "info", tmp_path / "again").out


@needs_kept_listings
def test_sources_here_and_on_the_hub_go_together_and_offline(
    ling: Any, hub: FakeHub, source: Path, tmp_path: Path
) -> None:
    command = ("data", "prepare", "hf://owner/tiny", source, "--split", "test", "--workers", 1)
    done = ling(*command, "--out", tmp_path / "x")
    assert done.code == 0, done.err
    assert "4 documents" in done.err
    hub.requests.clear()
    done = ling(*command, "--out", tmp_path / "y", "--offline")
    assert done.code == 0, done.err
    assert hub.requests == []
    for name in ("tokens.bin", "tokens.idx", "tokens.json"):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("hf://owner/none", "owner/none is no data set, or none that you may see"),
        ("hf://owner/tiny --split dev", "has no split 'dev'; it has test, train"),
        ("hf://owner/tiny --subset en", "has no subset 'en'; it has default"),
        ("hf://owner/tiny --key body", "no text under the key 'body': the record has 'text'"),
        ("hf://owner/tiny@v1", "owner/tiny has no such revision"),
        ("hf://tiny", "is not a data set's name: that is hf://OWNER/NAME"),
        pytest.param("hf://owner/tiny --offline", "is not in the hub's cache", marks=needs_kept_listings),
        ("owner/tiny", "there is no data file owner/tiny; a data set on Hugging Face is hf://owner/tiny"),
        (
            "https://huggingface.co/datasets/owner/tiny",
            "addresses are not read; a data set on Hugging Face is hf://OWNER",
        ),
        ("owner/tiny.jsonl", "there is no data file owner/tiny.jsonl"),
        ("{tmp}/a.jsonl --split train", "--subset, --split and --offline are for data sets on the hub"),
    ],
)
def test_mistakes_about_data_sets_are_one_line(
    ling: Any, hub: FakeHub, tmp_path: Path, arguments: str, message: str
) -> None:
    done = ling("data", "prepare", *arguments.format(tmp=tmp_path).split(), "--out", tmp_path / "x")
    assert done.code == 2
    assert message in done.err.splitlines()[-1]
    assert not (tmp_path / "x").exists()
    assert not list(tmp_path.glob(".x*"))


def test_nothing_is_downloaded_for_a_directory_that_is_taken(ling: Any, hub: FakeHub, made: Path) -> None:
    done = ling("data", "prepare", "hf://owner/tiny", "--out", made)
    assert done.code == 2
    assert "exists already" in done.err
    assert hub.requests == []


def test_many_sources_are_not_all_printed(ling: Any, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(20):
        (tmp_path / f"many/{number:02}.txt").write_text("Text.")
    assert ling("data", "prepare", tmp_path / "many", "--out", tmp_path / "x").code == 0
    assert "'07.txt'] and 12 more\n" in ling("data", "info", tmp_path / "x").out


RECIPE = [
    "pretrain_tiny_cpu",
    "model.hidden_size=32",
    "model.intermediate_size=32",
    "model.moe_intermediate_size=16",
    "train.steps=4",
    "train.sequence_length=16",
    "train.micro_batch_size=2",
    "train.global_batch_size=4",
    "train.average_last=0",
    "train.checkpoint_every=2",
    "optim.warmup_steps=0",
    "run.evaluate_every=4",
    "run.evaluate_prompts=1",
    "run.evaluate_tokens=32",
    "run.export_last=false",
    "data.heldout_percent=10",
    "run.threads=1",
]


@pytest.mark.parametrize("packing", ["documents", "stream"])
def test_a_run_reads_token_files_and_resumes_to_the_same_numbers(
    ling: Any, made: Path, tmp_path: Path, packing: str
) -> None:
    files = [f"data.files=[{made}=0.6,{made}=0.4]", f"data.packing={packing}"]
    done = ling("train", *RECIPE, *files, "--out", str(tmp_path / "run"))
    assert done.code == 0, done.err
    whole = (tmp_path / "run/metrics.jsonl").read_text()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["tokens"] for line in lines] == [64] * 4
    assert json.loads((tmp_path / "run/evaluations.jsonl").read_text())["evaluation/bits_per_byte"] > 1
    import shutil

    shutil.rmtree(tmp_path / "run/final")
    shutil.rmtree(tmp_path / "run/checkpoints/step_000004")
    done = ling("train", RECIPE[0], "--resume", "--out", str(tmp_path / "run"))
    assert done.code == 0, done.err
    again = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in again] == [line["loss"] for line in lines]


def test_a_run_does_not_go_on_with_other_files(ling: Any, made: Path, source: Path, tmp_path: Path) -> None:
    import shutil

    assert ling("train", *RECIPE, f"data.files=[{made}]", "--out", str(tmp_path / "run")).code == 0
    shutil.rmtree(tmp_path / "run/final")
    source.write_text(source.read_text().replace("Paris", "Lyon"))
    assert ling("data", "prepare", str(source), "--out", str(made), "--overwrite").code == 0
    done = ling("train", RECIPE[0], "--resume", "--out", str(tmp_path / "run"))
    assert done.code == 2
    assert "was trained on other data" in done.err
