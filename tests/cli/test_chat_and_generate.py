"""Talking to the model in the package: one answer, a conversation, and what goes wrong in between."""

import io
import json
import sys

import pytest

from ling.cli.chat import converse
from ling.engine.bundled import bundled_directory
from ling.engine.llm import LLM


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


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


def test_seeds_repeat(ling) -> None:
    def drawn(seed: int) -> str:
        return ling("generate", "Tell me a story about Tom and a dog.", "--temperature", "1", "--seed", seed).out

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize("temperature", ["-1", "nan", "1e-300", "inf"])
def test_a_temperature_that_cannot_be_meant_is_refused(ling, temperature: str) -> None:
    result = ling("generate", "hi", "--temperature", temperature)
    assert result.code == 2
    assert "temperature must be 0" in result.err


def test_a_conversation_remembers_and_forgets(ling, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "My friend is Anna.\nWho is my friend?\n/reset\n\nWho are you?\n/quit\n")
    out = ling("chat").out
    assert "Your friend is Anna." in out
    assert out.index("Your friend is Anna.") < out.index("Ling")


def test_a_conversation_that_outgrows_the_context_says_so_and_goes_on(ling, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "far " * 600 + "\nWho are you?\n")
    result = ling("chat")
    assert result.code == 0
    assert "the context 512" in " ".join(result.out.split())
    assert "Ling" in result.out.rpartition("the context 512")[2]


def test_ctrl_c_stops_an_answer_and_keeps_the_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = LLM.load(bundled_directory())
    stream, calls = llm.stream, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return stream(*arguments)

    monkeypatch.setattr(llm, "stream", interrupted)
    typed(monkeypatch, "My friend is Anna.\nTell me a story.\nWho is my friend?\n")
    converse(llm)
    out = capsys.readouterr().out
    assert "stopped" in out
    assert "Your friend is Anna." in out


def test_its_provenance_is_beside_it() -> None:
    told = json.loads((bundled_directory() / "PROVENANCE.json").read_text(encoding="utf-8"))
    assert told["measured"]["gated_percent"] >= 90
