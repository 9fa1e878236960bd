"""Rotation frequencies against the numbers of the specification."""

import math

import pytest
import torch

from ling.config import ModelConfig, RopeScaling, preset
from ling.ops.rope import Rope, apply_rope, rope_frequencies, rope_table

MINI = ModelConfig(**preset("ling_mini")["model"])


def mini_with(scaling: RopeScaling) -> ModelConfig:
    return ModelConfig(**{**preset("ling_mini")["model"], "rope_scaling": scaling})


def test_default_frequencies() -> None:
    inv_freq, scale = rope_frequencies(MINI, torch.device("cpu"))
    expected = {0: 1.0, 1: 6.598310879e-1, 2: 4.353770645e-1, 15: 1.956552931e-3, 31: 2.525898972e-6}
    assert {j: inv_freq[j].item() for j in expected} == pytest.approx(expected, rel=1e-6)
    assert (len(inv_freq), scale) == (32, 1.0)


def test_yarn_frequencies_of_the_published_recipe() -> None:
    yarn = RopeScaling(type="yarn", factor=4.0, original_max_position_embeddings=32768)
    inv_freq, scale = rope_frequencies(mini_with(yarn), torch.device("cpu"))
    expected = {
        12: 6.810723999e-3, 13: 4.119433473e-3, 16: 8.606629658e-4, 20: 8.157070461e-5, 21: 4.036716507e-5,
        31: 6.314747431e-7,
    }  # fmt: skip
    assert {j: inv_freq[j].item() for j in expected} == pytest.approx(expected, rel=1e-6)
    assert scale == pytest.approx(1.1386294361)


def test_yarn_attention_factor_may_be_given_or_made_of_the_mscale_pair() -> None:
    def factor(**given: float) -> float:
        scaling = RopeScaling(type="yarn", factor=4.0, original_max_position_embeddings=64, **given)
        return rope_frequencies(mini_with(scaling), torch.device("cpu"))[1]

    assert factor(attention_factor=1.3) == 1.3
    expected = (0.1 * 2 * math.log(4) + 1) / (0.1 * 0.5 * math.log(4) + 1)
    assert factor(mscale=2.0, mscale_all_dim=0.5) == pytest.approx(expected)
    assert factor(mscale=2.0) == pytest.approx(0.1 * math.log(4) + 1)


def test_only_the_first_channels_turn_and_lengths_stay() -> None:
    x = torch.randn(7, 3, 128)
    rope = rope_table(torch.arange(7), MINI, torch.float32)
    y = apply_rope(x, rope)
    assert torch.equal(y[..., 64:], x[..., 64:])
    assert torch.equal(y[0], x[0])
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))


def test_channel_j_pairs_with_channel_j_plus_half() -> None:
    x = torch.zeros(1, 1, 4)
    x[..., 0] = 1.0
    quarter_turn = Rope(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
    assert apply_rope(x, quarter_turn).flatten().tolist() == [0.0, 0.0, 1.0, 0.0]


def test_scores_depend_on_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 128).unbind()
    positions = torch.tensor([3, 10, 1003, 1010])
    rope = rope_table(positions, MINI, torch.float32)
    turned_q, turned_k = apply_rope(q.expand(4, 1, 128), rope), apply_rope(k.expand(4, 1, 128), rope)
    near, far = (turned_q[1] * turned_k[0]).sum(), (turned_q[3] * turned_k[2]).sum()
    assert near.item() == pytest.approx(far.item(), abs=1e-3)
