"""The reference numbers again, on a GPU. TF32 stays off: these are float32 comparisons."""

import pytest
import torch

from ling.model import CausalLM, ModelOutput, PackedBatch
from ling.ops.ragged import Ragged
from ling.testing.tolerances import GOLDEN, GOLDEN_FAR, GOLDEN_GRAD, GOLDEN_LOSS, assert_close
from ling.train.loss import compute_loss
from tests.golden_cases import Run, load_case, runs
from tests.model.test_golden_forward import packed_labels, published_gradients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def forward(model: CausalLM, run: Run) -> ModelOutput:
    device = model.model.word_embeddings.weight.device
    packed = run.batch(model.config.num_nextn_predict_layers)
    mtp_ids = None if packed.mtp_ids is None else packed.mtp_ids.to(device)
    batch = PackedBatch(Ragged(packed.rows.lengths, device), mtp_ids)
    return model(run.pack(run.ids).to(device), run.pack(run.positions).to(device), batch)


@pytest.mark.parametrize("run", [r for r in runs("forward") if r.case not in ("bf16", "ties_raw")], ids=str)
def test_float32_logits_and_routing(run: Run) -> None:
    model = load_case(run.case).cuda()
    with torch.no_grad():
        output = forward(model, run)
        logits = model.logits(output.hidden).cpu()
        mtp = [model.logits(h).cpu() for h in output.mtp_hidden]
    tolerance = GOLDEN_FAR if run.far else GOLDEN
    assert_close(logits[run.compared], run.expected("out.logits"), tolerance, f"{run} logits")
    for i, got in enumerate(mtp):
        assert_close(got[run.compared], run.expected(f"out.mtp_logits.{i}"), tolerance, f"{run} mtp {i}")
    if run.case != "ties":
        for layer, routing in output.routings.items():
            ids = routing.ids.cpu()[run.compared].sort(1).values
            assert torch.equal(ids, run.expected(f"out.layers.{layer}.topk_idx").sort(1).values), f"{run} layer {layer}"


@pytest.mark.parametrize("run", [r for r in runs("forward") if r.case == "bf16"], ids=str)
def test_bfloat16_is_no_further_from_float32_than_the_reference_is(run: Run) -> None:
    model = load_case(run.case, torch.bfloat16).cuda()
    with torch.no_grad():
        logits = model.logits(forward(model, run).hidden).cpu()[run.compared]
    exact = run.expected("alt.fp32.logits")
    ours, theirs = (logits - exact).abs(), (run.expected("out.logits") - exact).abs()
    assert ours.max() <= 1.5 * theirs.max(), (ours.max(), theirs.max())
    assert ours.square().mean() <= 1.5**2 * theirs.square().mean()


@pytest.mark.parametrize("run", runs("train"), ids=str)
def test_loss_and_every_gradient(run: Run) -> None:
    model = load_case(run.case).cuda()
    output = forward(model, run)
    labels = packed_labels(run, model.config.num_nextn_predict_layers).cuda()
    losses = compute_loss(model, output, labels[0], labels[1:])
    losses.total.backward()
    assert_close(losses.total.cpu(), run.data["out.loss"].squeeze(), GOLDEN_LOSS, f"{run} loss")
    gradients = published_gradients(model)
    for key, wanted in run.data.items():
        if key.startswith("out.grad."):
            assert_close(gradients[key.removeprefix("out.grad.")].cpu(), wanted, GOLDEN_GRAD, f"{run} {key}")
