"""`train.precision=fp8`: refused where it is not there, and resumed to the bit with layers that have left it."""

import json
from pathlib import Path

import pytest
import torch
from tests.train.test_loop import read_batches, recipe, weights

from ling.config.recipe import load_recipe
from ling.errors import ConfigError
from ling.train.loop import Training

FP8 = [
    "train.precision=fp8", "train.fp8.measure_every=2", "train.fp8.max_distortion_percent=2.7", "train.steps=4",
    "train.average_last=0", "model.num_hidden_layers=2",
    "train.tokens_per_step=192",
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["parallel.tensor=2"], "train.precision fp8 does without tensor and pipeline ranks, but parallel.tensor is 2"),
        (["parallel.recompute=selective"], "does not go with parallel.recompute selective; use none or full"),
        (["train.fp8.measure_every=-1"], "train.fp8.measure_every must not be negative"),
        (["train.fp8.max_underflow_percent=0"], "train.fp8.max_underflow_percent must lie above 0"),
    ],
)
def test_what_fp8_cannot_do_is_refused_in_one_line(changes: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        load_recipe(preset_name="tiny", overrides=["train.precision=fp8", *changes])


def test_a_resumed_run_ends_with_the_same_bits_and_the_same_layers_in_bfloat16(tmp_path: Path) -> None:
    whole = Training(recipe(*FP8), tmp_path / "whole", read_batches)
    losses = [report.loss for report in whole.run()]
    interrupted = Training(recipe(*FP8), tmp_path / "cut", read_batches)
    reports = interrupted.run()
    next(reports)
    reports.close()
    resumed = Training(recipe(*FP8), tmp_path / "cut", read_batches)
    assert resumed.fp8.in_bfloat16 == ()
    assert resumed.resume() == 1
    assert resumed.fp8.in_bfloat16, "no layer left FP8: the bound is too wide for this test"
    assert [report.loss for report in resumed.run()] == losses[1:]
    assert all(torch.equal(weights(resumed)[name], value) for name, value in weights(whole).items())
    lines = [json.loads(line) for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    assert ["fp8" in line for line in lines] == [True, False, True, False]
    assert set(lines[0]["fp8"]["bfloat16_layers"]) <= set(lines[2]["fp8"]["bfloat16_layers"])
    assert lines[0]["fp8"]["distortion_percent"] > 2.7
