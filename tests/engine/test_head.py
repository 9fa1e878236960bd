"""Choices that read less of the head: the tokens of all of it, and only where nothing else is wanted of logits."""

import errno
import os
from functools import cache
from typing import Any

import pytest
import torch

from ling.checkpoint import load_model
from ling.cli.bench.traffic import step_bytes
from ling.config.engine import EngineConfig
from ling.engine.build import build, describe
from ling.engine.bundled import bundled_directory
from ling.engine.core import Engine
from ling.engine.head import _JUDGED, _PAUSE, MOST_ROWS, HeadShortlist
from ling.engine.request import SamplingParams, StructuredOutputsParams
from ling.engine.sampler import Row
from ling.model import CausalLM
from ling.ops.backend import use_backend
from ling.ops.cpu.library import LEVELS, library, opened
from ling.ops.packed import PackedWeight
from ling.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(library() is None, reason="the C library was not built")


@pytest.fixture(autouse=True)
def small_heads_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ling.engine.head.LEAST_BYTES", 0)
    for level in LEVELS:
        monkeypatch.setitem(MOST_ROWS, level, 4)


@cache
def loaded(format: str | None) -> tuple[CausalLM, Tokenizer]:
    model = load_model(bundled_directory(), dtype=torch.float32, weights=format)  # type: ignore[arg-type]
    return model.requires_grad_(False), Tokenizer.from_directory(bundled_directory())


def engine(*, shortlist: bool = True, **config: Any) -> Engine:
    config = {"max_model_len": 128, "max_num_seqs": 4, "adaptive_drafts": False, **config}
    return build(*loaded("int8"), EngineConfig(head_shortlist=shortlist, **config))


def answers(of: Engine, *asked: SamplingParams) -> list[list[int]]:
    """Return the tokens of an answer to each, all at once."""
    tokenizer = of.tokenizer
    for i, params in enumerate(asked):
        of.add(str(i), tokenizer.encode("Once upon a time there was a", special=False)[: 4 + i], params)
    found: dict[str, list[int]] = {str(i): [] for i in range(len(asked))}
    while of.has_work:
        for delta in of.step():
            assert delta.error is None, delta.error
            found[delta.request_id] += delta.token_ids
    return list(found.values())


def uses(of: Engine) -> int:
    """Return how many choices have looked at the sketch."""
    assert of.runner.head is not None
    return of.runner.head._count


ASKED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.9, "seed": 3},
    "top-k": {"temperature": 1.1, "seed": 4, "top_k": 20},
    "all of them": {"temperature": 1.3, "seed": 5, "top_k": 40, "top_p": 0.8, "min_p": 0.01},
}


@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("kind", ASKED)
def test_answers_are_those_of_the_whole_head(kind: str, drafts: int) -> None:
    params = SamplingParams(max_tokens=24, ignore_eos=True, **ASKED[kind])
    ours, theirs = engine(num_speculative_tokens=drafts), engine(shortlist=False, num_speculative_tokens=drafts)
    assert theirs.runner.head is None
    assert answers(ours, params) == answers(theirs, params)
    assert uses(ours) > 4


def test_drafts_look_at_the_sketch_as_well() -> None:
    of = engine(num_speculative_tokens=3)
    assert of.runner.head is not None
    known, propose, read = of.runner.head._known, of.runner.propose, []
    assert known is not None

    def watched(*given: Any) -> list[list[int]] | None:
        known.forget()
        found = propose(*given)
        read.append((known.looked_at // known.codes.shape[0], len(given[3]), known._read_again.value))
        return found

    of.runner.propose = watched  # type: ignore[method-assign]
    greedy = SamplingParams(max_tokens=16, ignore_eos=True, temperature=0.0)
    for count in (1, 2):
        answers(of, *[greedy] * count)
    # The last ones of an answer are fewer.
    assert {(looks, rows) for looks, rows, _ in read} >= {(1, 1), (3, 1), (3, 2)}
    assert max(looks for looks, *_ in read) == 3
    # For each row one to know what to reach, and that one to stand.
    assert all(tiles >= 2 * looks * rows for looks, rows, tiles in read)


def test_different_choices_go_together_and_too_many_read_all() -> None:
    kinds = [SamplingParams(max_tokens=16, ignore_eos=True, **asked) for asked in ASKED.values()]
    ours, theirs = engine(drafting="none", max_num_seqs=8), engine(drafting="none", shortlist=False, max_num_seqs=8)
    assert answers(ours, *kinds) == answers(theirs, *kinds)
    assert uses(ours) >= 15
    assert len(kinds) == 4
    before = uses(ours)
    answers(ours, *kinds, kinds[0])
    assert uses(ours) == before


WHOLE: dict[str, dict[str, Any]] = {
    "log-probabilities": {"temperature": 0.0, "logprobs": 2},
    "top-p alone": {"temperature": 1.0, "top_p": 0.9},
    "min-p alone": {"temperature": 1.0, "min_p": 0.1},
    "a long top-k": {"temperature": 1.0, "top_k": 65},
    "bias": {"temperature": 0.0, "logit_bias": {7: 3.0}},
    "penalties": {"temperature": 0.0, "repetition_penalty": 1.2},
    "a least length": {"temperature": 0.0, "min_tokens": 8},
    "a grammar": {"temperature": 0.0, "structured_outputs": StructuredOutputsParams(choice=["a fox", "a hen"])},
}


@pytest.mark.parametrize("kind", WHOLE)
def test_what_more_is_wanted_of_is_read_whole(kind: str) -> None:
    params = SamplingParams(max_tokens=8, seed=1, **WHOLE[kind])
    if params.structured_outputs is None:
        ours = engine(drafting="none")
        answers(ours, params)
        assert uses(ours) == 0
    row = Row(params, 1, 0, [1, 2], 1, (), None if kind != "a grammar" else torch.ones(4, dtype=torch.bool),
              (7,) if kind == "a least length" else ())  # fmt: skip
    known = HeadShortlist(loaded("int8")[0])
    if kind != "log-probabilities":  # whoever asks for those gives no rows
        assert known.logits(torch.randn(1, loaded("int8")[0].config.hidden_size), [row]) is None


def test_log_probabilities_are_those_of_all_tokens_also_beside_who_wants_none() -> None:
    from ling.engine.choosing import choose

    of = engine(drafting="none")
    for i, logprobs in enumerate((None, 1)):
        of.add(str(i), [5, 6, 7], SamplingParams(temperature=0.0, logprobs=logprobs))
    while any(s.num_computed < 3 for s in (*of.scheduler.waiting, *of.scheduler.running)):
        of.step()
    running = list(of.scheduler.running)
    hidden = [torch.randn(1, of.model.config.hidden_size) for _ in running]
    assert all(bool(logits.isfinite().all()) for logits, _ in choose(of.runner, running, hidden))
    (logits, _), = choose(of.runner, running[:1], hidden[:1])  # fmt: skip
    assert bool(logits.isinf().any())


def test_reading_too_much_again_rests_and_is_tried_anew() -> None:
    of = HeadShortlist(loaded("int8")[0])
    flat = torch.zeros(1, loaded("int8")[0].config.hidden_size)  # every token is as likely
    row = Row(SamplingParams(temperature=0.0), 0, 0, [1], 1)
    used = [of.logits(flat, [row]) is not None for _ in range(2 * (_JUDGED + _PAUSE))]
    assert used[: _JUDGED - 1] == [True] * (_JUDGED - 1)
    assert used[_JUDGED - 1 : _JUDGED + _PAUSE] == [False] * (_PAUSE + 1)
    assert used[_JUDGED + _PAUSE]
    sure = loaded("int8")[0].head().dequantize(torch.float32)[:1]  # type: ignore[union-attr]
    of = HeadShortlist(loaded("int8")[0])
    assert all(of.logits(sure, [row]) is not None for _ in range(4 * _JUDGED))


def test_another_weight_has_another_sketch() -> None:
    model = load_model(bundled_directory(), weights="int8").requires_grad_(False)  # type: ignore[arg-type]
    of, row = HeadShortlist(model), Row(SamplingParams(temperature=0.0), 0, 0, [1], 1)
    weight = model.head()
    assert isinstance(weight, PackedWeight)
    x = weight.dequantize(torch.float32)[40:41]
    with torch.no_grad():
        for change in ("in place", "replaced", "moved", "scales moved"):
            weight = model.head()
            assert isinstance(weight, PackedWeight)
            negative, before = (256 - weight.codes.long()).to(torch.uint8), (weight.codes.data, weight.scales.data)
            if change == "in place":
                weight.codes.copy_(negative)
            elif change == "replaced":
                assert model.lm_head is not None
                model.lm_head.weight = torch.nn.Parameter(negative, False)
            elif change == "moved":
                weight.codes.data = negative
            else:
                weight.scales.data = 2 * weight.scales
            found, expected = of.logits(x, [row]), model.logits(x)
            assert found is not None
            assert found.argmax() == expected.argmax(), change
            assert torch.equal(found[found > -torch.inf], expected[found > -torch.inf]), change
            del before  # what was looked at until now stayed there


def test_a_head_whose_changes_nobody_counts_is_read_whole() -> None:
    with torch.inference_mode():
        model = load_model(bundled_directory(), weights="int8").requires_grad_(False)  # type: ignore[arg-type]
    assert model.head().codes.is_inference()  # type: ignore[union-attr]
    assert HeadShortlist(model).ready(1) is None


def test_hidden_states_of_two_bytes_read_all() -> None:
    of, row = HeadShortlist(loaded("int8")[0]), Row(SamplingParams(temperature=0.0), 0, 0, [1], 1)
    hidden = torch.randn(1, loaded("int8")[0].config.hidden_size)
    assert of.logits(hidden.bfloat16(), [row]) is None
    assert of.logits(hidden, [row]) is not None


def test_without_memory_for_a_sketch_all_is_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(size: int) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("ling.engine.head.anonymous_pages", refused)
    of = engine()
    assert len(answers(of, SamplingParams(temperature=0.0, max_tokens=4))[0]) == 4
    assert caplog.messages == [
        "choices read the whole head: there is no memory for its sketch (Cannot allocate memory)"
    ]


def test_bytes_of_a_step_are_fewer_by_what_is_not_read() -> None:
    ours, theirs = engine(drafting="none"), engine(drafting="none", shortlist=False)
    spared = theirs.model.head().codes.nbytes / 2  # type: ignore[union-attr]
    whole = step_bytes(theirs, 1, 0).weights
    assert whole - step_bytes(ours, 1, 0).weights == pytest.approx(spared, rel=0.01)
    assert step_bytes(ours, 5, 0) == step_bytes(theirs, 5, 0)
    answers(ours, SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True))
    assert whole - spared < step_bytes(ours, 1, 0).weights < whole  # some of it was read again
    assert ours.runner.head is not None
    ours.runner.head._pause = 1
    assert step_bytes(ours, 1, 0).weights == whole


def test_only_a_large_head_of_int8_has_a_sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    of = engine()
    assert of.runner.head is not None
    codes = loaded("int8")[0].head().codes.nbytes  # type: ignore[union-attr]
    assert of.runner.head.nbytes == codes // 2 + of.model.config.hidden_size
    assert describe(of)[-1].startswith("head: greedy, by temperature or top-k, 4 of its 8 bits are read first (")
    for format in ("int4", None):
        known = HeadShortlist(loaded(format)[0])
        assert known.nbytes == 0
        assert known.ready(1) is None
    with use_backend("reference"):
        assert of.runner.head.ready(1) is None
    with opened().at_level("plain"):
        monkeypatch.setitem(MOST_ROWS, "plain", 0)
        assert of.runner.head.ready(1) is None
        assert HeadShortlist(loaded("int8")[0]).nbytes == 0
    assert of.runner.head.ready(1) is not None
    monkeypatch.setattr("ling.engine.head.LEAST_BYTES", 2**26)
    small = engine()
    assert small.runner.head is not None
    assert small.runner.head.nbytes == 0
    assert not any(line.startswith("head") for line in describe(small))
