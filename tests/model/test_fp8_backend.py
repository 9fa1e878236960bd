"""`train.fp8.backend`: a library that was asked for is tried by every layer's weight before a step depends on it."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.model.test_fp8 import loss_of
from tests.ops import fp8_contracts as contracts

from ling.cli.train.dry_run import describe
from ling.config.fp8 import Fp8Config
from ling.config.recipe import load_recipe
from ling.errors import ConfigError
from ling.model import CausalLM
from ling.model.fp8 import Fp8Layers
from ling.ops.deep_gemm import library
from ling.testing.models import tiny_model

WHOLE_BLOCKS = {
    "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 256,
    "moe_intermediate_size": 128, "num_hidden_layers": 2,
    "num_nextn_predict_layers": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    library.find.cache_clear()
    yield
    library.find.cache_clear()


def model() -> CausalLM:
    return tiny_model(**WHOLE_BLOCKS).to(torch.bfloat16)


@pytest.mark.parametrize("backend", ["triton", "scaled_mm", "deep_gemm"])
def test_a_back_end_that_cannot_run_here_is_refused_before_the_first_step(backend: str) -> None:
    with pytest.raises(ConfigError, match="run on CUDA devices, not on cpu; use auto") as refused:
        Fp8Layers(model(), Fp8Config(backend=backend))
    assert str(refused.value).startswith(f"train.fp8.backend {backend} is not for model.layers.0.attention")
    assert "\n" not in str(refused.value)


def test_weights_without_whole_blocks_are_refused_unless_their_layers_are_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contracts.install(monkeypatch)
    odd = tiny_model(**WHOLE_BLOCKS | {"moe_intermediate_size": 64})
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.experts: .* 128 x 64 is not made of whole blocks"):
        Fp8Layers(odd, Fp8Config(backend="deep_gemm"))
    layers = ("experts=bfloat16", "shared=bfloat16")
    assert Fp8Layers(odd, Fp8Config(backend="deep_gemm", layers=layers)).layers


def test_a_misspelt_back_end_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.fp8\.backend = 'deepgemm': .* 'auto', 'triton', 'scaled_mm' or"):
        load_recipe(preset_name="tiny", overrides=["train.precision=fp8", "train.fp8.backend=deepgemm"])


def test_the_plan_counts_the_room_that_a_library_wants_between_experts() -> None:
    def gigabytes(*changes: str) -> float:
        recipe = load_recipe(file=Path("cpt_mini_1gpu"), overrides=["data.files=[corpus]", *changes])
        line = next(line for line in describe(recipe, Path("run")).splitlines() if line.startswith("memory:"))
        return float(line.split()[1])

    # Every expert's rows begin at a multiple of 128 instead of 16: 112 * 256 rows more of some kilobytes.
    assert 0.1 < gigabytes("train.fp8.backend=deep_gemm") - gigabytes() < 1
    assert gigabytes("train.fp8.backend=scaled_mm") == gigabytes()


@pytest.mark.parametrize("backend", ["scaled_mm", "deep_gemm"])
def test_a_model_learns_through_a_library_what_it_learns_through_the_reference(
    backend: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    contracts.install(monkeypatch)
    monkeypatch.setattr("ling.log._said", set())
    gradients = []
    for chosen in (backend, "auto"):
        network = model()
        with caplog.at_level(logging.INFO):
            Fp8Layers(network, Fp8Config(backend=chosen))
        contracts.CALLS.clear()
        loss = loss_of(network)
        loss.backward()
        assert bool(contracts.CALLS) == (chosen == backend)
        gradients.append((loss.detach(), network.model.layers[1].mlp.experts.down_proj.grad.float()))
    assert ("has no grouped products" in caplog.text) == (backend == "scaled_mm")
    (loss, grad), (expected_loss, expected_grad) = gradients
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-2)
    assert torch.nn.functional.cosine_similarity(grad.flatten(), expected_grad.flatten(), 0) > 0.97
