"""`ling generate --input`: every line is answered once, whatever stops the run, and bad lines harm only themselves."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.cli.scripted_engine import ScriptedEngine, scripted_llm

from ling.cli.batch.answers import AnswerFile
from ling.cli.batch.command import generate_file
from ling.cli.models import tell_apart
from ling.engine.request import SamplingParams
from ling.errors import ConfigError, DataError


class Files:
    """An input and an output, and runs between them."""

    def __init__(self, directory: Path) -> None:
        self.input, self.output = directory / "asked.jsonl", directory / "answers.jsonl"

    def ask(self, *lines: object) -> None:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        self.input.write_text("\n".join(texts) + "\n")

    def run(
        self, engine: ScriptedEngine | None = None, *, restart: bool = False, raw: bool = True, **params: Any
    ) -> Any:
        engine = engine or ScriptedEngine()
        generate_file(
            self.input,
            self.output,
            open_llm=lambda: scripted_llm(engine),
            params=SamplingParams(**{"seed": 0, **params}),
            raw=raw,
            model=lambda: {"name": "scripted"},
            restart=restart,
        )
        return engine

    @property
    def answers(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.read_text().splitlines()]

    @property
    def by_index(self) -> dict[int, dict[str, Any]]:
        found = {answer["index"]: answer for answer in self.answers}
        assert len(found) == len(self.answers)
        return found


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_every_line_is_answered_in_the_order_of_completion(files: Files) -> None:
    files.ask({"prompt": "x" * 12, "id": "long"}, {"prompt": "abc", "id": 7}, {"prompt": [1, 2], "max_tokens": 1})
    engine = files.run()
    assert [a["index"] for a in files.answers] == [2, 1, 0]
    assert [files.by_index[i]["text"] for i in range(3)] == ["12.0", "3.0", "2"]
    assert [files.by_index[i].get("id") for i in range(3)] == ["long", 7, None]
    assert files.by_index[0]["output_tokens"] == 4
    assert files.by_index[0]["prompt_tokens"] == 12
    assert files.by_index[0]["finish_reason"] == "stop"
    assert engine.most_running == 3


def test_text_is_a_message_unless_it_is_raw(files: Files) -> None:
    files.ask({"prompt": "abc"}, {"messages": [{"role": "user", "content": "abcd"}], "tools": [{}]})
    files.run(raw=False)
    assert [files.by_index[i]["text"] for i in range(2)] == ["13.0", "15.0"]


def test_a_line_has_sampling_of_its_own_and_else_that_of_the_command_with_its_own_seed(files: Files) -> None:
    files.ask({"prompt": "a"}, {"prompt": "b", "temperature": 0.5, "seed": 9, "stop": ["x"], "logit_bias": {"3": 1}})
    engine = files.run(temperature=0.7, seed=40)
    (_, first), (_, second) = engine.asked
    assert (first.temperature, first.seed) == (0.7, 40)
    assert (second.temperature, second.seed, tuple(second.stop), second.logit_bias) == (0.5, 9, ("x",), {3: 1.0})
    files.ask({"prompt": "a"}, {"prompt": "a"})
    assert [p.seed for _, p in files.run(seed=40, restart=True).asked] == [40, 41]


def test_several_answers_and_logprobs_are_written(files: Files) -> None:
    files.ask({"prompt": "abc", "n": 2}, {"prompt": "abc", "logprobs": 1})
    files.run()
    assert [o["text"] for o in files.by_index[0]["outputs"]] == ["3.0", "3.1"]
    assert files.by_index[1]["logprobs"][0] == [{"id": ord("3"), "token": "3", "logprob": -0.5}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{oh", "not JSON"),
        ("[1]", "a line is a JSON object, got list"),
        ({"text": "a"}, "unknown field text"),
        ({"id": 1}, "either prompt or messages"),
        ({"prompt": 3}, "prompt must be text or a list of token ids"),
        ({"prompt": "a", "temperature": "hot"}, "temperature: input should be a valid number"),
        ({"prompt": "a", "temperature": -1}, "temperature must be 0"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens must be at least 1"),
        ({"prompt": "a", "structured_outputs": {"jsonn": 1}}, "unknown field structured_outputs.jsonn"),
        ({"prompt": "a", "prompt_logprobs": 1}, "unknown field prompt_logprobs"),
        ({"prompt": "a" * 60}, "the prompt has 60 tokens"),
        ({"messages": []}, "there are no messages"),
        ({"messages": ["hi"]}, "messages must be a list of objects"),
        ({"prompt": "a", "tools": []}, "tools belong to messages"),
        ({"prompt": "a", "temperature": 9}, "ValueError: boom"),
    ],
)
def test_a_bad_line_becomes_an_error_and_the_others_go_on(files: Files, line: object, reason: str) -> None:
    files.ask({"prompt": "abc"}, line, {"prompt": "abcd"})
    files.run()
    assert reason in files.by_index[1]["error"]
    assert [files.by_index[i]["text"] for i in (0, 2)] == ["3.0", "4.0"]


@pytest.mark.parametrize("stop_at", [1, 3, 5, 9])
def test_an_interrupted_run_leaves_whole_lines_and_the_next_one_answers_the_rest_once(
    files: Files, stop_at: int
) -> None:
    def interrupt(number: int) -> None:
        if number == stop_at:
            raise KeyboardInterrupt

    files.ask(*({"prompt": "x" * n} for n in range(1, 12)))
    with pytest.raises(typer.Exit) as stopped:
        files.run(ScriptedEngine(2, interrupt))
    assert stopped.value.exit_code == 130
    before = len(files.answers) if files.output.exists() else 0
    engine = files.run()
    assert len(engine.asked) == 11 - before
    assert {i: a["text"] for i, a in files.by_index.items()} == {n - 1: f"{n}.0" for n in range(1, 12)}


def test_what_is_answered_is_not_asked_again(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.ask({"prompt": "abc"}, {"bad": 1})
    files.run()
    before = files.output.read_bytes()
    assert files.run().asked == []
    assert files.output.read_bytes() == before
    assert "all 2 lines are answered already" in capsys.readouterr().err


@pytest.mark.parametrize("left", [1, 5, 20, -1])
def test_a_torn_last_line_is_repaired(files: Files, left: int, capsys: pytest.CaptureFixture[str]) -> None:
    files.ask({"prompt": "abc"}, {"prompt": "abcd"})
    files.run()
    first, last, _ = files.output.read_bytes().split(b"\n")
    files.output.write_bytes(first + b"\n" + last[:left])
    files.run()
    assert sorted(files.by_index) == [0, 1]
    assert "was torn" in capsys.readouterr().err


def test_another_input_or_other_options_are_refused_unless_it_starts_again(files: Files) -> None:
    files.ask({"prompt": "abc"}, {"prompt": "abcd"})
    files.run()
    kept = files.output.read_bytes()
    with pytest.raises(DataError, match="under other options"):
        files.run(temperature=0.5)
    files.ask({"prompt": "abc"})
    with pytest.raises(DataError, match=r"answers line 2 and .* has only 1"):
        files.run()
    files.ask({"prompt": "abX"}, {"prompt": "abcd"})
    with pytest.raises(DataError, match=r"answers line 1 .* as it was"):
        files.run()
    assert files.output.read_bytes() == kept
    files.run(restart=True)
    assert len(files.answers) == 2


def test_another_model_is_told_by_its_config_and_the_sizes_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"123")
    (tmp_path / "README.md").write_text("one")
    first = tell_apart(tmp_path)
    (tmp_path / "README.md").write_text("another")
    assert tell_apart(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    second = tell_apart(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert len({json.dumps(found) for found in (first, second, tell_apart(tmp_path))}) == 3


def test_lines_may_be_added_behind_what_is_answered(files: Files) -> None:
    files.ask({"prompt": "abc"})
    files.run()
    files.ask({"prompt": "abc"}, {"prompt": "abcd"})
    assert len(files.run().asked) == 1
    assert sorted(files.by_index) == [0, 1]


@pytest.mark.parametrize("content", ["a diary\n", "a diary", '{"index": "x", "fingerprint": "y"}\n', "[]\n"])
def test_a_file_that_holds_something_else_is_left_alone(files: Files, content: str) -> None:
    files.ask({"prompt": "abc"})
    files.output.write_text(content)
    with pytest.raises(DataError, match="no answer of `ling generate`"):
        files.run()
    assert files.output.read_text() == content


def test_two_runs_do_not_write_one_file(files: Files) -> None:
    files.ask({"prompt": "abc"})
    holder = AnswerFile(files.output)
    with pytest.raises(ConfigError, match="being written by another run"):
        files.run()
    holder.append({"index": 0, "text": "the first run's", "fingerprint": "x"})
    holder.close()
    assert [answer["text"] for answer in files.answers] == ["the first run's"]


def test_a_run_without_answers_leaves_no_file(files: Files) -> None:
    AnswerFile(files.output).close()
    assert not files.output.exists()


def test_a_full_disk_is_one_line_and_keeps_what_fitted(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.ask({"prompt": "abc"}, {"prompt": "def"})
    write = os.write

    def write_once(descriptor: int, data: bytes) -> int:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")) == files.output and os.fstat(descriptor).st_size:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", write_once)
    with pytest.raises(ConfigError, match=r"answers\.jsonl: Disk quota exceeded"):
        files.run()
    monkeypatch.undo()
    assert len(files.answers) == 1
    files.run()
    assert sorted(files.by_index) == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["hello", "--input", "x", "--output", "y"], "a prompt and --input are two ways"),
        (["--input", "x"], "--input and --output go together"),
        (["--input", "missing", "--output", "y"], "there is no such file"),
        (["hello", "--restart"], "--restart"),
        (["hello", "--logprobs", "1"], "--logprobs"),
    ],
)
def test_options_that_do_not_fit_are_refused(ling, arguments: list[str], reason: str) -> None:
    result = ling("generate", *arguments)
    assert result.code == 2
    assert reason in result.err


def test_an_empty_input_and_an_output_that_is_the_input_are_refused(files: Files) -> None:
    files.ask("")
    with pytest.raises(DataError, match="no lines to answer"):
        files.run()
    assert not files.output.exists()
    files.output = files.input
    with pytest.raises(ConfigError, match="another file than --input"):
        files.run()


def test_the_bundled_model_answers_a_file_as_it_answers_each_prompt_and_goes_on(ling, files: Files) -> None:
    questions = ["What is the capital of France?", "Who are you?", "What is the capital of Italy?"]
    files.ask(*({"prompt": q} for q in questions[:2]), "{")
    arguments = ("--input", files.input, "--output", files.output, "--max-num-seqs", 2)
    first = ling("generate", *arguments)
    assert first.code == 0, first.err
    assert "3 lines answered, 1 of them with an error" in first.err
    assert first.out == ""
    files.ask(*({"prompt": q} for q in questions[:2]), "{", {"prompt": questions[2]})
    second = ling("generate", *arguments)
    assert "1 line answered, 3 were there already" in second.err
    texts = [files.by_index[i]["text"] for i in (0, 1, 3)]
    assert [t + "\n" for t in texts] == [ling("generate", q).out for q in questions]
    other = ling("generate", *arguments, "--temperature", 1)
    assert other.code == 2
    assert "under other options" in other.err


def test_an_answer_of_a_file_has_the_form_its_line_asks_for(ling, files: Files) -> None:
    form = {"choice": ["blue", "red"]}
    files.ask({"prompt": "Which?", "structured_outputs": form}, {"prompt": "?", "structured_outputs": {"regex": "("}})
    assert ling("generate", "--input", files.input, "--output", files.output).code == 0
    assert files.by_index[0]["text"] in form["choice"]
    assert "regex" in files.by_index[1]["error"]


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_is_gone_on_with(files: Files, tmp_path: Path) -> None:
    files.ask(*({"prompt": f"Tell me a story about Tom and dog {i}.", "temperature": 0.8} for i in range(800)))
    command = [sys.executable, "-m", "ling", "generate", "--input", str(files.input), "--output"]
    for kill in (signal.SIGINT, signal.SIGKILL, signal.SIGTERM):
        before = len(files.answers) if files.output.exists() else 0
        run = subprocess.Popen([*command, str(files.output), "--max-num-seqs", "8"])
        while not files.output.exists() or files.output.read_bytes().count(b"\n") < before + 30:
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(kill)
        assert run.wait() == (-signal.SIGKILL if kill == signal.SIGKILL else 130)
    subprocess.run([*command, str(files.output), "--max-num-seqs", "3", "--drafts", "0"], check=True)
    subprocess.run([*command, str(tmp_path / "at_once.jsonl")], check=True)
    killed = files.by_index
    files.output = tmp_path / "at_once.jsonl"
    assert killed == files.by_index
