"""Router telemetry on loads whose numbers are known."""

import math

import pytest
import torch

from ling.train.metrics import RouterTelemetry, router_telemetry, worst


def test_perfect_balance() -> None:
    assert router_telemetry(torch.full((8,), 5)) == RouterTelemetry(0.0, 0.0, pytest.approx(1.0), 0)


def test_one_expert_for_all() -> None:
    telemetry = router_telemetry(torch.tensor([12, 0, 0, 0]))
    assert (telemetry.max_violation, telemetry.load_entropy, telemetry.dead_experts) == (3.0, 0.0, 3)
    assert telemetry.load_cv == pytest.approx(math.sqrt(3))


def test_nothing_routed() -> None:
    assert router_telemetry(torch.zeros(4)).dead_experts == 4


def test_the_worst_layer_counts() -> None:
    layers = {1: RouterTelemetry(1.0, 0.2, 0.9, 3), 2: RouterTelemetry(0.5, 0.4, 0.95, 0)}
    assert worst(layers) == RouterTelemetry(1.0, 0.4, 0.9, 3)


def test_a_dense_model_has_no_worst_layer() -> None:
    assert worst({}) is None
