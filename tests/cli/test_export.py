"""`ling export` from the command line: what goes where, and mistakes in one line."""

import shutil
from pathlib import Path

import pytest

from ling.engine.bundled import bundled_directory

BUNDLED = bundled_directory()


def test_launch_lines_are_all_that_goes_to_stdout(ling, tmp_path: Path) -> None:
    result = ling("export", "--for", "vllm", BUNDLED, tmp_path / "a model", "--tensor-parallel-size", "2")
    assert result.code == 0, result.err
    (line,) = result.out.splitlines()
    assert line.startswith(
        f"vllm serve '{tmp_path}/a model' --served-model-name 'a model' auto --tensor-parallel-size 2 "
    )
    assert "--max-model-len 512" in line
    assert "1 written again, without 207 tensors that the program does not take" in result.err
    assert "the MTP layer was left out" in result.err


def test_what_became_of_the_weights_is_said(ling, tmp_path: Path) -> None:
    assert "bfloat16 as stored, files: 1 linked" in ling("export", "--for", "sglang", BUNDLED, tmp_path / "linked").err
    said = ling("export", "--for", "sglang", BUNDLED, tmp_path / "new", "--dtype", "float32").err
    assert "weights: written as float32" in said


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--for tgi", "--for tgi is not known; use vllm, sglang, llamafactory"),
        ("--for vllm --dtype int4", "--dtype int4 is not known; use float32, bfloat16, float8"),
        (
            "--for vllm --tensor-parallel-size 3",
            "--tensor-parallel-size 3: 4 query heads are not divisible by 3. Use 1, 2 or 4",
        ),
        ("--for sglang --pipeline-parallel-size 5", "the model has 4 layers to deal out. Use 1 to 4"),
        ("--for vllm --max-model-len 600", "Use at most 512, or stretch it with --yarn 2"),
        ("--for vllm --dtype float8", "no engine takes FP8 blocks of this network; use --dtype bfloat16"),
        ("--for vllm --yarn 1", "--yarn must be a factor above 1"),
        ("--for vllm --tokenizer {tmp}/none", "--tokenizer {tmp}/none is not a directory"),
        ("--for llamafactory --max-model-len 8", "--max-model-len is for serving"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(ling, tmp_path: Path, arguments: str, line: str) -> None:
    result = ling("export", *arguments.format(tmp=tmp_path).split(), BUNDLED, tmp_path / "out")
    assert result.code == 2, result.err
    assert line.format(tmp=tmp_path) in result.err.rstrip().splitlines()[-1]
    assert result.out == ""
    assert not any(tmp_path.iterdir())


def test_the_source_is_never_overwritten(ling, tmp_path: Path) -> None:
    result = ling("export", "--for", "sglang", BUNDLED, BUNDLED, "--overwrite")
    assert result.code == 2
    assert "must lie apart" in result.err


def test_code_for_transformers_is_put_into_a_checkpoint_as_it_lies(ling, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(BUNDLED, directory)
    result = ling("export", "--hf-code", directory)
    assert result.code == 0, result.err
    assert result.out.splitlines() == [
        str(directory / name) for name in ("configuration_ling.py", "modeling_ling.py", "config.json")
    ]
    assert "auto_map" in (directory / "config.json").read_text()


def test_code_for_transformers_goes_with_an_export_that_needs_it_or_asks_for_it(ling, tmp_path: Path) -> None:
    for program, options, present in (("llamafactory", [], True), ("sglang", ["--hf-code"], True), ("vllm", [], False)):
        assert ling("export", "--for", program, BUNDLED, tmp_path / program, *options).code == 0
        assert (tmp_path / program / "modeling_ling.py").exists() == present


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("{source}", "say what the directory is for: --for vllm, sglang, llamafactory; or --hf-code"),
        ("--hf-code {source} {tmp}/out", "--hf-code alone adds to {source} itself and takes no second directory"),
        ("--for vllm {source}", "name the directory to write"),
        ("--hf-code {tmp}", "{tmp} is no checkpoint we know"),
    ],
)
def test_a_form_of_the_command_that_means_nothing_is_one_line(ling, tmp_path: Path, arguments: str, line: str) -> None:
    result = ling("export", *arguments.format(tmp=tmp_path, source=BUNDLED).split())
    assert result.code == 2, result.err
    assert line.format(tmp=tmp_path, source=BUNDLED) in result.err
    assert not any(tmp_path.iterdir())
    assert not list(BUNDLED.glob("modeling*"))
