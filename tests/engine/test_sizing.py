"""What fits is settled from descriptions; what does not is refused before weights are read, what is lowered is told."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ling.checkpoint import load_model, save_model
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.prepare import to_packed
from ling.config import ModelConfig
from ling.config.engine import EngineConfig
from ling.engine import build, early, sizing
from ling.engine import llm as of_llm
from ling.engine.bundled import bundled_directory
from ling.engine.llm import LLM
from ling.engine.sizing import sizes_of
from ling.errors import ConfigError
from ling.testing.models import tiny_model
from ling.testing.text import IdTokenizer

CPU = torch.device("cpu")
MODEL = tiny_model(seed=1)
CONTEXT = MODEL.config.max_position_embeddings


def sizes(model: ModelConfig = MODEL.config, weight_bytes: int = 0, **options: Any) -> sizing.Sizes:
    return sizes_of(model, EngineConfig(**options), torch.float32, CPU, weight_bytes=weight_bytes)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Say how many blocks of the tiny model's cache the free memory is worth, the cache's share being a quarter."""
    per_block = sizes().bytes_per_block
    return lambda blocks: monkeypatch.setattr(sizing, "free_on", lambda device: 4 * per_block * blocks)


def unread(*_: Any, **__: Any) -> Any:
    raise AssertionError("weights were read")


def test_a_context_that_was_lowered_names_what_would_hold_it(free: Any) -> None:
    free(10)
    lowered = sizes(drafting="none")
    assert lowered.max_model_len == 160
    said = f"lowered from {CONTEXT}: the cache holds no more"
    assert lowered.lowered == f"{said}; kv_cache_dtype float16 or kv_cache_gib 0.001 would"
    held = dataclasses.replace(EngineConfig(drafting="none"), kv_cache_dtype="float16")
    assert sizes_of(MODEL.config, held, torch.float32, CPU).lowered == ""
    assert sizes(drafting="none", kv_cache_gib=0.001).lowered == ""
    free(7)  # half precision would not do
    assert sizes(drafting="none").lowered == f"{said}; kv_cache_dtype fp8 would"
    free(3)  # nothing that is free would
    assert sizes(drafting="none").lowered == said


def test_the_start_says_that_the_context_was_lowered(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    engine = LLM(MODEL, IdTokenizer(128), num_blocks=4, block_size=16, drafting="none").engine
    said = f"64, lowered from {CONTEXT}: the cache holds no more; num_blocks 16 would"
    assert f"context {said}" in " ".join(build.describe(engine))
    assert said.replace("64,", "64 tokens,") in caplog.text


def test_memory_that_the_weights_will_take_is_not_the_caches(free: Any) -> None:
    free(16)
    assert sizes(drafting="none").lowered == ""
    per_block = sizes().bytes_per_block
    assert sizes(drafting="none", weight_bytes=4 * per_block * 8).max_model_len == 128
    with pytest.raises(ConfigError, match=r"a context of 256 tokens needs 16 blocks .* 25% of the memory that is free"):
        sizes(drafting="none", max_model_len=256, weight_bytes=4 * per_block * 8)
    with pytest.raises(ConfigError, match=r"is 0 beside .* GiB of weights; lower max_model_len"):
        sizes(drafting="none", weight_bytes=4 * per_block * 99)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_model_len": 513}, "max_model_len 513 exceeds the model's context of 512"),
        ({"max_model_len": 512, "kv_cache_gib": 0.001}, "kv_cache_gib 0.001 is 26; lower max_model_len, or give kv_"),
        (
            {"hf_overrides": {"max_position_embeddings": 256}, "max_model_len": 300},
            "exceeds the model's context of 256",
        ),
    ],
)
def test_a_context_that_cannot_be_is_refused_before_weights_are_read(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_llm, "load", unread)
    monkeypatch.setattr(build, "load_model", unread)
    with pytest.raises(ConfigError, match=re.escape(message)):
        LLM(bundled_directory(), device="cpu", **options)
    overrides = options.pop("hf_overrides", None)
    with pytest.raises(ConfigError, match=re.escape(message)):
        build.open_engine(bundled_directory(), EngineConfig(**options), hf_overrides=overrides)


def test_weights_take_what_is_counted_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    monkeypatch.setattr(early, "sizes_of", lambda *_, weight_bytes: counted.append(weight_bytes))
    save_model(MODEL, tmp_path)
    for quantization, weights in ((None, None), ("int8", "int8")):
        early.check_sizes(tmp_path, quantization=quantization)
        model = load_model(tmp_path, dtype=torch.float32, weights=weights)  # type: ignore[arg-type]
        held = sum(tensor.nbytes for tensor in model.state_dict().values())
        assert counted.pop() == pytest.approx(held, rel=0.01), quantization


def test_another_precision_than_prepared_weights_have_is_one_refusal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_packed(open_pieces(bundled_directory()), tmp_path / "prepared", "int8")
    monkeypatch.setattr(build, "load_model", unread)
    with pytest.raises(ConfigError, match="holds int8 weights, which are computed with in float32; bfloat16 is not"):
        LLM(tmp_path / "prepared", dtype="bfloat16", device="cpu")
    assert not caplog.records
