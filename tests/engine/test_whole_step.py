"""The whole model as one call of the C library gives the numbers of its layers' own calls, to the bit."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ling.checkpoint import load_model
from ling.engine.bundled import bundled_directory
from ling.engine.cache import PagedCache, Part
from ling.engine.request import SamplingParams
from ling.engine.runner import Runner
from ling.engine.sequence import Sequence
from ling.engine.speculative import MtpDrafter
from ling.engine.text import AnswerText
from ling.model import CausalLM
from ling.model.linear import Linear
from ling.model.moe import Router
from ling.ops.backend import use_backend
from ling.ops.cpu.library import library
from ling.ops.packed import PackedWeight
from ling.testing.models import tiny_model
from ling.testing.text import IdTokenizer

pytestmark = pytest.mark.skipif(library() is None, reason="the C library was not built")

SIZE = 8
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12, 13, 14, 15, 16, 17, 18]]


@cache
def model_of(format: str) -> CausalLM:
    if format == "tiny":
        return tiny_model(head_dim=32, rotary_dim=16, num_nextn_predict_layers=1).requires_grad_(False)
    weights: Any = None if format == "float32" else format
    return load_model(bundled_directory(), dtype=torch.float32, weights=weights).requires_grad_(False)


def runner_of(model: CausalLM, *, whole: bool) -> Runner:
    runner = Runner(model, PagedCache(model.config, 12, SIZE, torch.float32, torch.device("cpu")), longest=64)
    assert runner._whole.why_not is None
    assert runner._whole_draft is not None
    assert runner._whole_draft.why_not is None
    if not whole:
        runner._whole.why_not = runner._whole_draft.why_not = "asked for"
    return runner


def steps(runner: Runner) -> list[Tensor]:
    """Return hidden states of two prompts, of the token behind each, and of the MTP layer over both prompts."""
    blocks = [[0, 1], [2, 5]]
    whole, finite = runner.forward([Part(b, 0, len(p)) for b, p in zip(blocks, PROMPTS)], PROMPTS)
    assert finite
    ahead = [[*p[1:], 3] for p in PROMPTS]
    drafted = runner.draft([Part(b, 1, len(p)) for b, p in zip(blocks, PROMPTS)], ahead, whole)
    behind, _ = runner.forward([Part(b, len(p), 1) for b, p in zip(blocks, PROMPTS)], [[3], [4]])
    return [*whole, *drafted, *behind]


@pytest.mark.parametrize("format", ["tiny", "float32", "int8", "int4"])
def test_one_call_gives_the_bits_of_calls_by_sub_layer(format: str) -> None:
    one, many = (runner_of(model_of(format), whole=whole) for whole in (True, False))
    with use_backend("cpu"):
        for got, expected in zip(steps(one), steps(many), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)
    torch.testing.assert_close(one.cache.keys, many.cache.keys, rtol=0, atol=0)
    torch.testing.assert_close(one.cache.values, many.cache.values, rtol=0, atol=0)


@pytest.mark.parametrize("how", ["whole", "by sub-layer", "without the library"])
def test_routers_in_bfloat16_give_the_bits_of_float32(how: str) -> None:
    narrow = model_of("int4")
    wide: CausalLM = load_model(bundled_directory(), dtype=torch.float32, weights="int4")
    for ours, theirs in zip(routers(narrow), routers(wide), strict=True):
        theirs.keep_as(torch.float32)
        assert ours.weight.dtype == torch.bfloat16
        assert ours.weight.float().equal(theirs.weight)
    with use_backend("reference" if how == "without the library" else "cpu"):
        found = [steps(runner_of(model, whole=how == "whole")) for model in (narrow, wide)]
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def routers(model: CausalLM) -> list[Router]:
    found = [module for module in model.modules() if isinstance(module, Router)]
    assert found
    return found


def test_decoding_is_one_call_and_a_forced_reference_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_of(model_of("tiny"), whole=True)
    calls = []
    run = type(runner._whole).__call__
    monkeypatch.setattr(type(runner._whole), "__call__", lambda *args: calls.append(1) or run(*args))
    steps(runner)
    assert len(calls) == 3
    with use_backend("reference"):
        steps(runner)
    assert len(calls) == 3


@pytest.mark.parametrize("format", ["tiny", "float32", "int8", "int4"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafts_of_one_call_are_those_of_a_pass_for_each(
    format: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two answers that go on, at the end of a block, and a prompt whose slots are only filled."""
    drafted = []
    for at_once in (True, False):
        runner = runner_of(model_of(format), whole=True)
        if at_once:  # by the head itself, not by what drafts read in 8 bits
            monkeypatch.setattr(runner._whole_draft, "_head", model_of(format).head())
        else:
            monkeypatch.setattr(runner, "propose", lambda *_: None)
        prompts = [[*PROMPTS[0], 3], PROMPTS[1], [30, 31, 32]]
        blocks = [[0, 1], [2, 5], [7]]
        hidden, _ = runner.forward([Part(b, 0, len(p)) for b, p in zip(blocks, prompts)], prompts)
        answers = [sequence_of(p, b, h, temperature) for p, b, h in zip(prompts, blocks, hidden)]
        for s in answers[:2]:
            s.tokens.append(9)
        answers[2].wait([hidden[2][:2]], 2)
        MtpDrafter(runner).draft(answers[:2], answers[2:], 3)
        assert [s.mtp_next for s in answers] == [7, 10, 3]
        drafted.append(([s.drafts for s in answers], runner.cache.keys, runner.cache.values))
    (one, *held), (many, *expected) = drafted
    assert one == many
    assert [len(drafts) for drafts in one] == [3, 3, 0]
    torch.testing.assert_close(held, expected, rtol=0, atol=0)


def test_drafts_read_the_head_in_8_bits() -> None:
    head = runner_of(model_of("float32"), whole=True)._whole_draft._head
    assert isinstance(head, PackedWeight)
    torch.testing.assert_close(head.dequantize(torch.float32), model_of("float32").head(), atol=0.01, rtol=0)
    packed = model_of("int4")
    assert runner_of(packed, whole=True)._whole_draft._head.codes is packed.head().codes  # type: ignore[union-attr]


def sequence_of(prompt: list[int], blocks: list[int], hidden: Tensor, temperature: float) -> Sequence:
    s = Sequence(
        request_id="a", index=0, params=SamplingParams(temperature=temperature), tokens=list(prompt),
        num_prompt=len(prompt), max_new=20, seed=5, text=AnswerText(IdTokenizer(64), SamplingParams()),
        blocks=blocks, num_computed=len(prompt),
    )  # fmt: skip
    s.wait([hidden], len(hidden))
    return s


def test_a_token_that_is_none_and_a_slot_beyond_the_rotations_are_errors() -> None:
    runner = runner_of(model_of("tiny"), whole=True)
    for token, start in ((-1, 0), (model_of("tiny").config.vocab_size, 0), (5, 64)):
        with pytest.raises(IndexError, match="not in the vocabulary"):
            runner.forward([Part(list(range(9)), start, 1)], [[token]])


def test_what_is_not_finite_is_told() -> None:
    runner = runner_of(model_of("tiny"), whole=True)
    runner.cache.values[:, 0] = torch.inf
    _, finite = runner.forward([Part([0], 3, 1)], [[5]])
    assert not finite


def fresh_model() -> CausalLM:
    return tiny_model(head_dim=32, rotary_dim=16, num_nextn_predict_layers=1).requires_grad_(False)


def double(model: CausalLM, how: str) -> None:
    dense = model.model.layers[0].attention.dense  # type: ignore[union-attr]
    assert isinstance(dense, Linear)
    doubled = dense.weight.detach() * 2
    if how == "in place":
        dense.weight.copy_(doubled)
    elif how == "other memory":
        dense.weight.data = doubled
    elif how == "other parameter":
        dense.weight = nn.Parameter(doubled, requires_grad=False)
    elif how == "other module":
        other = Linear(dense.in_features, dense.out_features).requires_grad_(False)
        other.weight.copy_(doubled)
        model.model.layers[0].attention.dense = other  # type: ignore[union-attr]
    elif how == "other layer":
        double(other_model := fresh_model(), "in place")
        model.model.layers[0] = other_model.model.layers[0]
    else:
        dense.multiply = lambda x, weight: x @ weight.T * 2


@pytest.mark.parametrize(
    "how", ["in place", "other memory", "other parameter", "other module", "other layer", "another product"]
)
@torch.no_grad()
def test_weights_that_change_behind_the_engine_are_those_that_decode(how: str) -> None:
    model = fresh_model()
    runner = runner_of(model, whole=True)
    before = steps(runner)[0]
    double(model, how)
    after = steps(runner)
    assert not torch.equal(after[0], before)
    double(expected := fresh_model(), "in place")
    torch.testing.assert_close(after, steps(runner_of(expected, whole=True)))


@torch.no_grad()
def test_drafts_read_the_head_as_it_is_after_it_changed_in_place() -> None:
    model = fresh_model()
    runner = runner_of(model, whole=True)
    model.head().mul_(-3)  # type: ignore[union-attr]
    steps(runner)
    read = runner._whole_draft._head
    assert isinstance(read, PackedWeight)
    torch.testing.assert_close(read.dequantize(torch.float32), model.head(), atol=0.01, rtol=0)


def test_a_layer_that_somebody_looks_into_is_called_as_a_module() -> None:
    model = fresh_model()
    runner = runner_of(model, whole=True)
    seen = []
    model.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    steps(runner)
    assert len(seen) == 2
    model.model.norm.register_forward_hook(lambda *_: seen.append(1))
    assert Runner(model, runner.cache, longest=64)._whole.why_not == "hooks look into the model"


def test_no_rows_give_no_rows() -> None:
    model = fresh_model()
    with torch.no_grad(), use_backend("cpu"):
        block = model.model.layers[1]
        assert block.mlp(torch.empty(0, model.config.hidden_size))[0].shape == (0, model.config.hidden_size)  # type: ignore[union-attr, operator]
        assert model.logits(torch.empty(0, model.config.hidden_size)).shape == (0, model.config.vocab_size)
