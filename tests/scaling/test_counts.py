"""Parameter and FLOP counts: the published numbers, and the model that is really built."""

import dataclasses

import pytest
import torch

from ling.config import PRESETS, ModelConfig, preset
from ling.model import CausalLM
from ling.scaling.flops import count_flops
from ling.scaling.parameters import count_parameters


def config(name: str, **changes: object) -> ModelConfig:
    return dataclasses.replace(ModelConfig(**preset(name)["model"]), **changes)


def test_published_counts() -> None:
    """spec model.md 9."""
    mini = count_parameters(config("ling_mini"))
    assert mini.total == 16_255_638_528
    assert mini.activated == 1_432_968_192
    assert mini.activated_without_embedding_and_head == 789_142_528
    assert mini.mtp_layer == 827_861_248
    assert mini.expert_bias == 4_864
    assert count_parameters(config("ling_mini", num_nextn_predict_layers=1)).total_with_mtp == 17_083_499_776
    assert count_parameters(config("ling_flash")).total == 102_889_697_280
    assert count_parameters(config("ling_1t")).total == 999_705_309_184


@pytest.mark.parametrize("name", PRESETS)
def test_counts_are_those_of_the_model_that_is_built(name: str) -> None:
    built = config(name) if "model" in preset(name) else ModelConfig()
    with torch.device("meta"):
        model = CausalLM(built)
    counts = count_parameters(built)
    assert sum(p.numel() for p in model.parameters()) == counts.total_with_mtp


def test_a_tied_head_is_counted_once() -> None:
    tied = config("tiny", tie_word_embeddings=True)
    with torch.device("meta"):
        assert sum(p.numel() for p in CausalLM(tied).parameters()) == count_parameters(tied).total_with_mtp


def test_training_flops_are_those_the_published_log_counts() -> None:
    """research: 7.672 GF per token at 4K without MTP, 9.941 with; 8.68 and 11.00 at 8K."""
    plain, mtp = config("ling_mini"), config("ling_mini", num_nextn_predict_layers=1)
    found = [count_flops(c, s).training / 1e9 for s in (4096, 8192) for c in (plain, mtp)]
    assert found == pytest.approx([7.672, 9.941, 8.68, 11.00], rel=1e-3)
