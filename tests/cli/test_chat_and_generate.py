"""Talking to the model in the package: one answer, a conversation, and what goes wrong in between."""

import io
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tests.cli.streaming_server import stream_from

from ling.cli.bench.client import Client, RefusedError
from ling.cli.bench.probe import first_model
from ling.cli.chat import converse
from ling.cli.talk.answer import Model
from ling.cli.talk.show import ChatMarkdown, MarkdownShow, split_finished
from ling.engine.bundled import bundled_directory
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams
from ling.errors import RequestError

FRIEND, WHO = "My friend is Anna.", "Who is my friend?"
ANSWER = "Your friend is Anna."


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(bundled_directory())


def test_the_bundled_model_answers_at_once(ling) -> None:
    assert ling("generate", "What is the capital of France?").out == "The capital of France is Paris.\n"


def test_a_prompt_from_a_pipe_is_the_same_prompt(ling, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "What is the capital of France?\n")
    assert ling("generate").out == "The capital of France is Paris.\n"


@pytest.mark.parametrize("arguments", [["generate", ""], ["generate"]])
def test_an_empty_prompt_is_refused(ling, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    typed(monkeypatch, "")
    result = ling(*arguments)
    assert result.code == 2
    assert "the prompt is empty" in result.err


def test_raw_text_is_continued(ling) -> None:
    first = ling("generate", "--raw", "In the beginning", "--max-tokens", "12").out
    assert first
    assert first == ling("generate", "--raw", "In the beginning", "--max-tokens", "12", "--drafts", "0").out


def test_an_answer_ends_where_a_stop_text_begins(ling) -> None:
    out = ling("generate", "What is the capital of France?", "--stop", " is", "--stop", "nothing").out
    assert out == "The capital of France\n"


def test_seeds_repeat(ling) -> None:
    def drawn(seed: int) -> str:
        return ling("generate", "Tell me a story about Tom and a dog.", "--temperature", "1", "--seed", seed).out

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize("temperature", ["-1", "nan", "1e-300", "inf"])
def test_a_temperature_that_cannot_be_meant_is_refused(ling, temperature: str) -> None:
    result = ling("generate", "hi", "--temperature", temperature)
    assert result.code == 2
    assert "temperature must be 0" in result.err


def test_a_conversation_remembers_forgets_and_tells_what_it_took(ling, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, f"{FRIEND}\n{WHO}\n/reset\n\nWho are you?\n/quit\n")
    out = ling("chat").out
    assert ANSWER in out
    assert out.index(ANSWER) < out.index("Ling")
    assert "tokens, first after" in out
    assert "% of drafts accepted" in out


def test_a_conversation_that_outgrows_the_context_says_so_and_goes_on(ling, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "far " * 600 + "\nWho are you?\n")
    result = ling("chat")
    assert result.code == 0
    assert "the context 512" in " ".join(result.out.split())
    assert "Ling" in result.out.rpartition("the context 512")[2]


def test_ctrl_c_stops_an_answer_and_keeps_what_was_said(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    step, steps = llm.engine.step, []

    def interrupted():
        steps.append(1)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return step()

    monkeypatch.setattr(llm.engine, "step", interrupted)
    typed(monkeypatch, f"Tell me a story about Tom and a dog.\n/save {tmp_path}/said.jsonl\nWho are you?\n")
    converse(llm)
    out = capsys.readouterr().out
    assert "stopped; " in out
    told = json.loads((tmp_path / "said.jsonl").read_text())["messages"]
    assert [m["role"] for m in told] == ["user", "assistant"]
    assert told[1]["content"]
    assert told[1]["content"] in out
    assert len(steps) > 4
    assert "Ling" in out
    assert not llm.engine.has_work


def test_a_question_stopped_before_its_answer_is_forgotten(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted():
        os.kill(os.getpid(), signal.SIGINT)
        return []

    with monkeypatch.context() as once:
        once.setattr(llm.engine, "step", interrupted)
        typed(once, "hello\n/save nowhere.jsonl\n")
        converse(llm)
    out = capsys.readouterr().out
    assert "the question is forgotten" in out
    assert "there is nothing to save yet" in out


def test_instructions_are_set_shown_and_used(ling, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "said.jsonl"
    typed(monkeypatch, f"/system\n/system Be brief.\n/system\nhi\n/save {file}\n/system -\n/reset\nhi\n/save {file}\n")
    out = ling("chat").out
    assert "there are no instructions" in out
    assert "instructions: Be brief." in out
    first, second = (json.loads(line)["messages"] for line in file.read_text().splitlines())
    assert first[0] == {"role": "system", "content": "Be brief."}
    assert [m["role"] for m in second] == ["user", "assistant"]


def test_a_saved_conversation_is_loaded_and_fits_fine_tuning(
    ling, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ling.finetune.formats import ChatFormat

    file = tmp_path / "said.jsonl"
    typed(monkeypatch, f"{FRIEND}\n/save {file}\n/reset\n/load {file}\n{WHO}\n")
    out = ling("chat").out
    assert "2 messages loaded" in out
    assert ANSWER in out
    assert len(ChatFormat().sample(json.loads(file.read_text())).messages) == 2


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/help", "/system TEXT"),
        ("/sytem x", "there is no command /sytem"),
        ("/save", "/save needs a file"),
        ("/save /nowhere/x", "there is nothing to save yet"),
        ("/load /nowhere/x", "cannot read /nowhere/x"),
        ("/load pyproject.toml", "Expecting value"),
        ("/load README.md", "README.md does not end with a conversation"),
    ],
)
def test_commands_say_what_is_wrong_and_ask_nothing(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, told: str
) -> None:
    before = llm.engine.stats.requests
    typed(monkeypatch, line + "\n")
    converse(llm)
    assert told in capsys.readouterr().out
    assert llm.engine.stats.requests == before


def test_a_backslash_continues_a_message_and_a_blank_hides_a_slash(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    typed(monkeypatch, f"one\\\ntwo\n /three\n/save {tmp_path}/said.jsonl\n")
    converse(llm, max_tokens=2)
    said = json.loads((tmp_path / "said.jsonl").read_text())["messages"]
    assert [m["content"] for m in said if m["role"] == "user"] == ["one\ntwo", "/three"]


def test_a_server_is_talked_to_as_a_model_is(ling, monkeypatch: pytest.MonkeyPatch) -> None:
    with stream_from() as server:
        typed(monkeypatch, "hi\nand you?\n")
        out = ling("chat", "--url", server.url, "--max-tokens", 4, "--system", "Be x.", "--api-key", "secret").out
    assert out.count("xxxx") == 2
    assert "4 tokens, first after 0.0" in out
    last = server.asked[-1]
    assert [m["role"] for m in last["messages"]] == ["system", "user", "assistant", "user"]
    assert (last["max_tokens"], last["temperature"], last["key"]) == (4, 0, "Bearer secret")
    gone = ling("chat", "--url", server.url)
    assert gone.code == 2
    assert "cannot reach" in gone.err


def test_a_server_that_refuses_says_why_and_the_conversation_goes_on(ling, monkeypatch: pytest.MonkeyPatch) -> None:
    with stream_from("broken") as server:
        typed(monkeypatch, "hi\n/help\n")
        out = ling("chat", "--url", server.url).out
    assert "HTTP 503: too many wait" in " ".join(out.split())
    assert "/system TEXT" in out


def test_an_answer_is_cut_at_its_longest_and_says_so(llm: LLM) -> None:
    pieces: list[str] = []
    model = Model(llm, SamplingParams(max_tokens=3, temperature=0))
    answer = model.ask([{"role": "user", "content": WHO}], pieces.append)
    assert answer.text == "".join(pieces)
    assert (answer.tokens, answer.finish_reason) == (3, "length")
    assert "cut at --max-tokens" in answer.describe()


def test_blocks_are_cut_at_blank_lines_outside_of_code() -> None:
    code = "```python\na = 1\n\nb = 2\n"
    assert split_finished("one\n\ntwo\n\nthree") == ("one\n\ntwo\n\n", "three")
    assert split_finished(code) == ("", code)
    assert split_finished(code + "```\n\nend") == (code + "```\n\n", "end")
    assert split_finished("one\n") == ("", "one\n")


def shown(text: str) -> str:
    out = Console(file=io.StringIO(), force_terminal=True, width=60, height=8, color_system=None)
    with MarkdownShow(out) as show:
        for piece in text.split(" "):
            show.push(piece + " ")
    return out.file.getvalue()


def test_markdown_is_rendered_and_loses_no_text() -> None:
    text = "Some **bold** text.\n\n- one\n- two\n\n" + "line\n" * 20 + "\n<b>tag</b> and `code`\nnext \x1b[2J line"
    out = shown(text)
    assert "**" not in out.rpartition("next")[0].partition("•")[2]
    assert "•" in out
    assert "<b>tag</b>" in out
    assert "?[2J" in out
    assert "\x1b[2J" not in out
    lines = Console(file=io.StringIO(), width=40)
    lines.print(ChatMarkdown("a rose\nis a rose"))
    assert lines.file.getvalue().split("\n")[:2] == [f"{'a rose':40}", f"{'is a rose':40}"]


def test_its_provenance_is_beside_it() -> None:
    told = json.loads((bundled_directory() / "PROVENANCE.json").read_text(encoding="utf-8"))
    assert told["measured"]["gated_percent"] >= 90


@pytest.mark.parametrize(("status", "flag"), [(401, "--api-key"), (404, "--model")])
def test_a_server_that_lists_no_models_is_told_with_the_flag_that_helps(
    monkeypatch: pytest.MonkeyPatch, status: int, flag: str
) -> None:
    async def refused(_: Client) -> list[str]:
        raise RefusedError(status, "no")

    monkeypatch.setattr(Client, "models", refused)
    with pytest.raises(RequestError, match=flag):
        first_model(Client("http://127.0.0.1:1"))
