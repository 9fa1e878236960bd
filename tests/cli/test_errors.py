"""A mistake costs one line on stderr and exit code 2; our own bugs keep their traceback."""

from pathlib import Path

import pytest

from ling.checkpoint import save_model
from ling.cli.app import run
from ling.errors import ConfigError
from ling.testing.models import tiny_model


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("config --preset tiy", "unknown preset tiy; did you mean tiny?"),
        ("config --preset tiny model.num_expert=8", "unknown key model.num_expert on the command line; did you mean"),
        ("config --preset tiny model.num_experts=7", "n_group 4 does not divide num_experts 7"),
        ("config --recipe {tmp}", "cannot read recipe {tmp}: Is a directory"),
        ("convert {tmp}/none {tmp}/out", "{tmp}/none does not exist"),
        ("convert {tmp} {tmp}/out", "{tmp} is no checkpoint we know"),
        ("convert {tmp} {tmp}/out --to ggml", "--to ggml is not known; use safetensors, training, megatron"),
        ("convert {tmp} {tmp}/out --to megatron --force-fp8", "--to megatron holds no FP8 blocks"),
        ("convert {tmp} {tmp}/out --dtype float32 --force-fp8", "--dtype float32 contradicts --force-fp8"),
        ("convert {tmp} {tmp}/out --fp8-scales pow2", "--fp8-scales pow2 is for --dtype float8"),
        ("convert {tmp} {tmp}/out --max-shard-size nan", "--max-shard-size must be a positive number of GB"),
        ("convert {tmp} {tmp}/out --dtype int3", "--dtype int3 is not known; use float32, bfloat16, float8"),
        ("convert {tmp} {tmp}/out --force-bf16 --force-fp8", "--force-bf16 and --force-fp8 exclude each other"),
        ("convert {tmp} {tmp}/out --max-shard-size 0", "--max-shard-size must be a positive number of GB"),
        ("convert {tmp} {tmp}/out --tokenizer {tmp}/none", "tokenizer {tmp}/none is not a directory"),
        ("convert {tmp} {tmp}/out --dtype q8_0", "--dtype q8_0 is for --to gguf"),
        ("convert {tmp} {tmp}/out --to gguf", "--to gguf writes one file: name it {tmp}/out.gguf"),
        ("convert {tmp} {tmp}/out.gguf", "{tmp}/out.gguf is named as a GGUF file; add --to gguf"),
        ("convert {tmp} {tmp}/out.gguf --to gguf --dtype float8", "--to gguf holds no FP8 blocks"),
        ("convert {tmp} {tmp}/out.gguf --to gguf --mtp separate", "--to gguf holds MTP layers in the same file"),
        ("convert {tmp} {tmp}/out.gguf --to gguf --workers 2", "--workers is for files written at the same time"),
        ("convert {tmp} {tmp}/out.gguf --to gguf --max-shard-size 1", "--max-shard-size is for shards of safetensors"),
        ("generate hi --model {tmp}/none", "cannot read {tmp}/none/config.json"),
        ("generate hi --temperature -1", "temperature"),
        ("generate hi --max-tokens 0", "max_tokens"),
        ("demo --resume --out {tmp}/none", "there is no run to resume in {tmp}/none"),
        ("demo --out {tmp}/file", "{tmp}/file: Not a directory"),
        ("demo --out /proc/none", "/proc/none"),
        ("demo --recipe {tmp}/none.yaml --out {tmp}/new", "cannot read recipe {tmp}/none.yaml"),
        ("demo --out {tmp}", "{tmp} is not empty and not a run of ling demo"),
    ],
)
def test_mistakes_are_one_line(ling, tmp_path: Path, arguments: str, line: str) -> None:
    (tmp_path / "file").touch()
    result = ling(*arguments.format(tmp=tmp_path).split())
    assert result.code == 2, result.err
    last = result.err.rstrip().splitlines()[-1]
    assert last.startswith("ling: ")
    assert line.format(tmp=tmp_path) in last
    assert result.out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (ConfigError("a mistake"), 2, "tool.py: a mistake\n"),
        (OSError(28, "No space left on device", "/disk/file"), 2, "tool.py: /disk/file: No space left on device\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_other_programs_end_as_ling_does(
    failure: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise failure

    with pytest.raises(SystemExit) as ended:
        run(command, "tool.py")
    assert (ended.value.code, capsys.readouterr().err) == (code, said)


def test_an_unknown_command_is_named(ling) -> None:
    result = ling("trian")
    assert (result.code, result.out) == (2, "")
    assert "trian" in result.err


def test_a_model_without_its_tokenizer_is_refused(ling, tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "model")
    result = ling("generate", "hi", "--model", tmp_path / "model")
    assert result.code == 2
    assert "tokenizer" in result.err


def test_a_bug_keeps_its_traceback(ling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ling.scaling.flops.count_flops", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ling("config", "--preset", "tiny")
