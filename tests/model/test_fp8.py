"""Which layers multiply in FP8, and how they leave it."""

import logging

import pytest
import torch

from ling.config.fp8 import Fp8Config
from ling.errors import CheckpointError, ConfigError
from ling.model import CausalLM
from ling.model.fp8 import Fp8Layers
from ling.testing.models import tiny_model
from ling.train.batch import build_batch
from ling.train.loss import compute_loss


def loss_of(model: CausalLM) -> torch.Tensor:
    documents = [[(7 * i + j) % 90 + 10 for j in range(24)] for i in range(3)]
    batch = build_batch(documents, [[True] * 24] * 3, model.config.num_nextn_predict_layers)
    output = model(batch.tokens, batch.positions, batch.attention)
    return compute_loss(model, output, batch.labels, batch.mtp_labels, router_z_loss=1e-3).total


def measure(layers: Fp8Layers, model: CausalLM, step: int = 0):
    layers.begin(step)
    loss_of(model).backward()
    return layers.judge(step)


def test_the_blocks_linear_maps_and_experts_are_in_fp8_and_nothing_else() -> None:
    model = tiny_model(moe_shared_expert_intermediate_size=12, num_shared_experts=1)
    names = {layer.name for layer in Fp8Layers(model, Fp8Config()).layers}
    expected = {f"model.layers.{i}.attention.{name}" for i in range(4) for name in ("query_key_value", "dense")}
    expected |= {f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")}
    expected |= {f"model.layers.{i}.mlp.experts" for i in (1, 2, 3)}
    expected |= {
        f"model.layers.{i}.mlp.shared_experts.{name}_proj" for i in (1, 2, 3) for name in ("gate", "up", "down")
    }
    assert names == expected
    assert model.lm_head.multiply is None
    assert model.model.layers[3].eh_proj.multiply is None


def test_the_loss_and_every_gradient_are_near_those_in_float32() -> None:
    plain, model = tiny_model(use_bias=True, use_qkv_bias=True), tiny_model(use_bias=True, use_qkv_bias=True)
    Fp8Layers(model, Fp8Config())
    losses = [loss_of(m) for m in (plain, model)]
    assert losses[0] != losses[1]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=5e-3)
    for loss in losses:
        loss.backward()
    for (name, mine), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None, name
        similarity = torch.nn.functional.cosine_similarity(mine.grad.flatten(), other.grad.flatten(), 0).item()
        # Some tokens change experts, which routers are the first to feel.
        assert similarity > (0.5 if ".gate." in name else 0.9), (name, similarity)


def test_a_pattern_chooses_for_the_layers_it_means_and_the_last_one_counts() -> None:
    config = Fp8Config(
        layers=("attention=bfloat16", "experts=e5m2", "*.layers.2.*=e4m3", "*.2.attention.dense=bfloat16")
    )
    model = tiny_model()
    kinds = {layer.name: layer.rule.gradient_kind for layer in Fp8Layers(model, config).layers}
    assert kinds["model.layers.1.mlp.experts"] == torch.float8_e5m2
    assert kinds["model.layers.2.mlp.experts"] == torch.float8_e4m3fn
    attention = {name for name in kinds if "attention" in name}
    assert attention == {"model.layers.2.attention.query_key_value"}
    assert model.model.layers[0].attention.dense.multiply is None


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ("atention=bfloat16", "'atention', but this model has no such layer; did you mean attention"),
        ("attention", "an entry is pattern=choice with one of e4m3, e5m2, bfloat16"),
        ("attention=fp16", "an entry is pattern=choice with one of e4m3, e5m2, bfloat16"),
    ],
)
def test_a_pattern_that_means_nothing_is_refused(entry: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        Fp8Layers(tiny_model(), Fp8Config(layers=(entry,)))


def test_operands_are_measured_at_their_steps_and_nowhere_else() -> None:
    model = tiny_model()
    layers = Fp8Layers(model, Fp8Config(measure_every=3))
    found = [measure(layers, model, step) for step in range(4)]
    assert [m is None for m in found] == [False, True, True, False]
    assert found[0] == found[3]
    assert 2 < found[0].distortion_percent < 6.5
    assert 0 <= found[0].underflow_percent < 5
    assert found[0].bfloat16_layers == ()
    never = Fp8Layers(tiny_model(), Fp8Config(measure_every=0))
    never.begin(0)
    assert all(layer.watch is None for layer in never.layers)


def test_layers_beyond_the_bounds_leave_fp8_once_and_then_compute_as_they_would_have(caplog) -> None:
    model = tiny_model()
    layers = Fp8Layers(model, Fp8Config(max_distortion_percent=1.0, measure_every=1))
    with caplog.at_level(logging.WARNING):
        assert len(measure(layers, model).bfloat16_layers) == len(layers.layers)
        said = len(caplog.records)
        assert measure(layers, model, 1) is None
    assert said == len(layers.layers) == len(caplog.records)
    assert "model.layers.1.mlp.experts computes in bfloat16 from step 2 on: in FP8 its" in caplog.text
    assert loss_of(model).item() == loss_of(tiny_model()).item()


def test_one_bad_layer_leaves_alone_and_a_later_model_remembers() -> None:
    model = tiny_model()
    layers = Fp8Layers(model, Fp8Config(measure_every=1))
    with torch.no_grad():  # one huge value per block, beside which the others vanish
        model.model.layers[1].attention.dense.weight.mul_(1e-7)[0, 0] = 100.0
    found = measure(layers, model)
    assert found.bfloat16_layers == ("model.layers.1.attention.dense",)
    assert found.underflow_percent > 90
    fresh = Fp8Layers(tiny_model(), Fp8Config())
    fresh.restore(layers.state(), "training.json")
    assert fresh.in_bfloat16 == found.bfloat16_layers
    with pytest.raises(CheckpointError, match=r"training.json does not hold names of layers"):
        fresh.restore({"a": 1}, "training.json")


def test_what_is_not_finite_leaves_fp8_where_it_would_be_hidden() -> None:
    model = tiny_model()
    layers = Fp8Layers(model, Fp8Config(measure_every=1))
    model.model.layers[0].attention.dense.weight.data[0, 0] = torch.inf
    layers.begin(0)
    loss_of(model)
    assert "model.layers.0.attention.dense" in layers.judge(0).bfloat16_layers
