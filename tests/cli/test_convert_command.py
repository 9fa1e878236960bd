"""`ling convert` from the command line: GGUF files, mistakes, dry runs, MTP layers apart."""

from pathlib import Path

import pytest

from ling.checkpoint import save_model
from ling.checkpoint.gguf import open_gguf
from ling.engine.bundled import bundled_directory
from ling.testing.models import tiny_model


def test_a_gguf_file_is_foretold_written_and_verified(ling, tmp_path: Path) -> None:
    target = tmp_path / "ling.gguf"
    command = ("convert", bundled_directory(), target, "--to", "gguf", "--dtype", "q4_0")
    foretold = ling(*command, "--dry-run")
    assert (foretold.code, list(tmp_path.iterdir())) == (0, [])
    assert "format:  0.002 GB in 36 Q4_0, 30 F32, 1 Q8_0 tensors" in foretold.out
    done = ling(*command, "--verify")
    assert (done.code, done.out.strip()) == (0, str(target))
    assert "634 tensors compared" in done.err
    tensors = open_gguf(target).tensors
    assert len(tensors) == 67
    assert target.stat().st_size == 2_368_224

    again = ling(*command)
    assert again.code == 2
    assert "exists already" in again.err
    replaced = ling(*command, "--overwrite", "--mtp", "drop", "--tokenizer", bundled_directory())
    assert replaced.code == 0
    assert not any(tensor.name.startswith("blk.4.") for tensor in open_gguf(target).tensors)


def test_a_dry_run_refuses_what_the_run_would(ling, tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "wide")
    save_model(tiny_model(head_dim=16), tmp_path / "bare")
    for source, line in (("wide", "heads of 128 channels"), ("bare", "comes without a tokenizer")):
        refused = ling("convert", tmp_path / source, tmp_path / "a.gguf", "--to", "gguf", "--dry-run")
        assert refused.code == 2
        assert line in refused.err


def test_a_gguf_file_is_a_source(ling, tmp_path: Path) -> None:
    assert ling("convert", bundled_directory(), tmp_path / "model.gguf", "--to", "gguf").code == 0
    result = ling("convert", tmp_path / "model.gguf", tmp_path / "back", "--verify")
    assert result.code == 0, result.err
    for name in ("model-00001-of-00001.safetensors", "special_tokens_map.json", "tokenizer_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (bundled_directory() / name).read_bytes(), name
    result = ling("convert", tmp_path / "model.gguf", tmp_path)
    assert result.code == 2
    assert "must lie apart" in result.err


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("convert") / "published"
    save_model(tiny_model(), directory)
    return directory


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("{src} {tmp}/out --to megatron --max-shard-size 1", "--max-shard-size is for shards of safetensors"),
        ("{src} {tmp}/out --to training --max-shard-size 5", "--max-shard-size is for shards of safetensors"),
        ("{src} {tmp}/out.gguf --to gguf --max-shard-size 5", "--max-shard-size is for shards of safetensors"),
        ("{src} {tmp}/out --max-shard-size 1e300", "must be a positive number of GB below 1e9"),
        ("{src} {tmp}/out --max-shard-size 0", "must be a positive number of GB below 1e9"),
        ("{src} {tmp}/taken/config.json/out", "config.json is a file; choose another target"),
        ("{src} . --mtp separate", ". exists already"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    ling, published: Path, arguments: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "taken")
    before = sorted(tmp_path.rglob("*"))
    told = {"src": published, "tmp": tmp_path}
    for more in ((), ("--dry-run",)):
        done = ling("convert", *arguments.format(**told).split(), *more)
        assert done.code == 2, done.err
        assert line in done.err
        assert len(done.err.splitlines()) == 1
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("taken", ["out", "out-mtp"])
def test_nothing_is_written_if_one_of_two_targets_is_taken(ling, published: Path, taken: str, tmp_path: Path) -> None:
    (tmp_path / taken).mkdir()
    (tmp_path / taken / "config.json").write_text("{}")
    done = ling("convert", published, tmp_path / "out", "--mtp", "separate")
    assert done.code == 2
    assert f"{taken} exists already" in done.err
    assert [path.name for path in tmp_path.iterdir()] == [taken]


def test_mtp_layers_apart_are_verified_too(ling, published: Path, tmp_path: Path, monkeypatch) -> None:
    done = ling("convert", published, tmp_path / "out", "--mtp", "separate", "--dtype", "float8", "--verify")
    assert done.code == 0, done.err
    assert done.out.split() == [f"{tmp_path}/out-mtp", f"{tmp_path}/out"]
    whole = ling("convert", published, tmp_path / "whole", "--verify")
    count = [word for word in done.err.split() if word.isdecimal() or word == "tensors"]
    assert count[-2:] == [word for word in whole.err.split() if word.isdecimal() or word == "tensors"][-2:]

    def damage(partial: Path) -> None:
        (file,) = partial.glob("mtp_*.safetensors")
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)

    monkeypatch.setattr("ling.checkpoint.atomic._sync", lambda d: damage(d) if any(d.glob("mtp_*")) else None)
    done = ling("convert", published, tmp_path / "again", "--mtp", "separate", "--verify")
    assert done.code == 2
    assert "again-mtp is not what" in done.err
    assert done.out == ""


def test_an_interrupted_conversion_with_mtp_apart_goes_on(ling, published: Path, tmp_path: Path, monkeypatch) -> None:
    from ling.checkpoint import convert

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    command = ("convert", published, tmp_path / "out", "--mtp", "separate", "--max-shard-size", "1e-4")
    with monkeypatch.context() as patched:
        patched.setattr(convert, "_finish", interrupt)
        assert ling(*command).code == 130
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out-mtp").exists()
    done = ling(*command, "--verify")
    assert done.code == 0, done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out-mtp"]


def test_a_dry_run_names_what_will_lie_beside_and_apart(ling, published: Path, tmp_path: Path) -> None:
    told = ling("convert", published, tmp_path / "out", "--dry-run").out
    assert "no tokenizer" in told
    told = ling(
        "convert", published, tmp_path / "out", "--dry-run", "--tokenizer", bundled_directory(), "--mtp", "separate"
    ).out
    assert "beside:  tokenizer.json" in told
    assert f"apart:   MTP layers to {tmp_path}/out-mtp" in told
    refused = ling("convert", published, tmp_path / "out", "--dry-run", "--tokenizer", published)
    assert refused.code == 2
    assert "has no tokenizer.json" in refused.err
