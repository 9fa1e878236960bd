"""The whole model as one call of the C library gives the numbers of its layers' own calls, to the bit."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from ling.checkpoint import load_model
from ling.engine.bundled import bundled_directory
from ling.engine.cache import PagedCache, Part
from ling.engine.runner import Runner
from ling.model import CausalLM
from ling.ops.backend import use_backend
from ling.ops.cpu.library import library
from ling.testing.models import tiny_model

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
    assert runner._whole is not None
    assert runner._whole_draft is not None
    if not whole:
        runner._whole = runner._whole_draft = None
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


def test_what_is_not_finite_is_told() -> None:
    runner = runner_of(model_of("tiny"), whole=True)
    runner.cache.values[:, 0] = torch.inf
    _, finite = runner.forward([Part([0], 3, 1)], [[5]])
    assert not finite


def test_weights_that_change_in_place_are_seen() -> None:
    model = tiny_model(head_dim=32, rotary_dim=16, num_nextn_predict_layers=1).requires_grad_(False)
    runner = runner_of(model, whole=True)
    before = steps(runner)[0]
    with torch.no_grad():
        model.model.layers[0].attention.dense.weight.mul_(2)  # type: ignore[union-attr, operator]
    assert not torch.equal(steps(runner)[0], before)
    torch.testing.assert_close(steps(runner), steps(runner_of(model, whole=False)))


def test_a_layer_that_somebody_looks_into_is_called_as_a_module() -> None:
    model = tiny_model(head_dim=32, rotary_dim=16).requires_grad_(False)
    cache = PagedCache(model.config, 4, SIZE, torch.float32, torch.device("cpu"))
    seen = []
    handle = model.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    runner = Runner(model, cache, longest=64)
    handle.remove()
    assert runner._whole is None
