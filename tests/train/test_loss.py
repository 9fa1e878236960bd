"""How the loss is composed."""

import pytest
import torch

from ling.testing.models import tiny_model
from ling.train.batch import build_batch
from ling.train.loss import compute_loss


def test_terms_add_up_with_their_weights() -> None:
    model = tiny_model(num_nextn_predict_layers=2, mtp_loss_scaling_factor=0.3)
    batch = build_batch([[5, 6, 7, 8, 9], [9, 8, 7]], [[True] * 5, [True] * 3], 2)
    output = model(batch.tokens, batch.positions, batch.attention)
    losses = compute_loss(model, output, batch.labels, batch.mtp_labels, router_z_loss=0.01)
    z = sum(r.logits.logsumexp(1).square().mean() for r in output.routings.values())
    expected = losses.main + 0.3 * (losses.mtp[0] + losses.mtp[1]) + 0.01 * z
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert losses.z_loss.item() == pytest.approx(z.item() / len(output.routings), rel=1e-6)
    assert losses.num_learnt.item() == 6


def test_the_main_loss_is_the_mean_over_learnt_tokens() -> None:
    model = tiny_model(num_nextn_predict_layers=0)
    batch = build_batch([[5, 6, 7, 8]], [[False, False, True, False]], 0)
    output = model(batch.tokens, batch.positions, batch.attention)
    losses = compute_loss(model, output, batch.labels, batch.mtp_labels)
    expected = -model.logits(output.hidden)[1].log_softmax(0)[7]
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_z_loss_reaches_the_router() -> None:
    model = tiny_model()
    batch = build_batch([[5, 6, 7]], [[False] * 3], 1)
    output = model(batch.tokens, batch.positions, batch.attention)
    compute_loss(model, output, batch.labels, batch.mtp_labels, router_z_loss=1.0).total.backward()
    gradient = model.model.layers[1].mlp.gate.weight.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0
