"""Faults at odd moments: every answer still gets its end, and nobody is forgotten."""

import threading
from threading import Event

import pytest

from ling.config.engine import EngineConfig
from ling.engine import core
from ling.engine.core import Engine
from ling.engine.loop import EngineLoop
from ling.engine.request import SamplingParams
from ling.engine.speculative import READ_BACK
from ling.testing.models import tiny_model
from ling.testing.text import IdTokenizer

MODEL = tiny_model(seed=1)
PROMPT = [5, 6, 7, 8, 9]


def engine() -> Engine:
    return Engine(MODEL, IdTokenizer(128), EngineConfig(block_size=4))


def ends(engine: Engine, most_steps: int = 40) -> dict[str, str]:
    found = {}
    for _ in range(most_steps):
        found |= {d.request_id: d.finish_reason for d in engine.step() if d.finish_reason}
    assert not engine.has_work
    engine.blocks.check([])
    return found


def test_a_salt_may_be_any_string_even_half_a_character() -> None:
    own = engine()
    own.add("odd", PROMPT, SamplingParams(), salt="\ud800")
    own.add("plain", PROMPT, SamplingParams())
    assert ends(own) == {"odd": "length", "plain": "length"}


def test_who_waits_when_scheduling_fails_is_told_instead_of_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    own = engine()
    own.add("a", PROMPT, SamplingParams())
    own.add("b", PROMPT, SamplingParams())

    def fail(_: object) -> list[int]:
        raise RuntimeError("a fault")

    monkeypatch.setattr(own.blocks, "match", fail)
    assert ends(own) == {"a": "error", "b": "error"}
    monkeypatch.undo()
    own.add("a", PROMPT, SamplingParams())
    assert ends(own) == {"a": "length"}


def test_hidden_states_that_wait_for_drafting_do_not_keep_those_of_other_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = engine()
    monkeypatch.setattr(core, "_MANY_VALUES", 0)  # every step counts as one beside a long prompt
    monkeypatch.setattr(own.draft_length, "choose", lambda _: 0)
    for name in "ab":
        own.add(name, [*PROMPT, ord(name)], SamplingParams(max_tokens=9, ignore_eos=True))
    for _ in range(4):
        own.step()
    for s in own.scheduler.running:
        assert s.pending
        assert all(rows.untyped_storage().nbytes() == rows.nbytes for rows in s.pending)


@pytest.mark.parametrize("drafts", [True, False])
def test_drafts_that_follow_at_once_read_a_long_prompt_whole_and_those_that_wait_its_end(
    drafts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = engine()
    monkeypatch.setattr(own.draft_length, "choose", lambda _: 2 * drafts)
    prompt = [1 + i % 50 for i in range(5 * READ_BACK)]
    own.add("a", prompt, SamplingParams(max_tokens=9, ignore_eos=True))
    while not own.scheduler.running or own.scheduler.running[0].num_generated < 1:
        own.step()
    (s,) = own.scheduler.running
    assert s.mtp_first == (1 if drafts else len(prompt) - READ_BACK + 1)
    assert s.num_pending == (0 if drafts else READ_BACK)


def test_a_panic_below_python_is_told_to_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        pass

    def fail() -> None:
        raise Panic("at the disco")

    loop, ended = EngineLoop(engine()), Event()
    monkeypatch.setattr(loop.engine, "step", fail)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    loop.start().submit("a", PROMPT, SamplingParams(), lambda delta: ended.set() if delta.error else None)
    assert ended.wait(30)
    assert not loop.alive


def test_a_step_that_fails_at_its_end_does_not_lose_the_ends_of_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    own = engine()
    own.add("short", PROMPT, SamplingParams(max_tokens=1))
    own.add("long", PROMPT, SamplingParams(max_tokens=20))

    def fail(_: int) -> int:
        raise RuntimeError("a fault")

    monkeypatch.setattr(own.draft_length, "choose", fail)
    assert ends(own) == {"short": "length", "long": "error"}
