"""What a step needs by arithmetic."""

import pytest
import torch

from ling.scaling.flops import count_flops
from ling.testing.models import tiny_config
from ling.train.utilisation import find_peak, step_flops


def test_documents_of_one_length_cost_what_the_count_says_and_long_ones_more() -> None:
    model = tiny_config()
    assert step_flops(model, [32, 32], 64) == count_flops(model, 32).training * 64
    assert step_flops(model, [60, 4], 64) > step_flops(model, [32, 32], 64)


def test_the_peak_of_a_cpu_is_measured_and_named() -> None:
    peak = find_peak(torch.device("cpu"))
    assert peak is not None
    assert 1e9 < peak.flops_per_second < 1e14
    assert f"{peak.flops_per_second / 1e9:.0f} GFLOP/s" in peak.name


@pytest.mark.parametrize(("name", "tflops"), [("NVIDIA H100 80GB HBM3", 66.9), ("Some Other GPU", None)])
def test_a_gpu_that_is_known_has_its_data_sheet(monkeypatch: pytest.MonkeyPatch, name: str, tflops: float) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    peak = find_peak(torch.device("cuda"))
    assert (peak and peak.flops_per_second) == (tflops and pytest.approx(tflops * 1e12))
