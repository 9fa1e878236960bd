"""`ling convert --to gguf` from the command line; other targets are converted in test_demo.py."""

from pathlib import Path

from ling.checkpoint.gguf import open_gguf
from ling.engine.bundled import bundled_directory


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
    from ling.checkpoint import save_model
    from ling.testing.models import tiny_model

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
