"""One update: clipped, and refused where it would not be finite."""

import pytest
import torch

from ling.config.recipe import Recipe, load_recipe
from ling.errors import TrainingError
from ling.model import CausalLM, init_weights
from ling.testing.tolerances import SUM_ORDER, assert_close
from ling.train.batch import TrainBatch, build_batch
from ling.train.step import train_step


def recipe(*more: str) -> Recipe:
    return load_recipe(preset_name="tiny", overrides=["optim.lr=1", "optim.warmup_steps=0", *more])


def model_and_batch(of: Recipe) -> tuple[CausalLM, TrainBatch]:
    model = init_weights(CausalLM(of.model), torch.Generator().manual_seed(0))
    return model, build_batch([list(range(10, 34))], [[True] * 24], 1)


def parameters(model: CausalLM) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


@pytest.mark.parametrize("limit", [0.01, 0.0])
def test_the_gradient_is_clipped_to_the_limit_and_a_limit_of_zero_is_none(limit: float) -> None:
    clipped = recipe(f"optim.clip_grad_norm={limit}")
    model, batch = model_and_batch(clipped)
    before = parameters(model)
    # Adam would hide a scale common to all gradients; plain descent with a rate of 1 moves by the gradient itself.
    result = train_step(model, torch.optim.SGD(model.parameters(), lr=1.0), [batch], clipped, 0)
    assert result.grad_norm.item() > 0.1
    assert (parameters(model) - before).norm().item() == pytest.approx(limit or result.grad_norm.item(), rel=1e-3)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_an_update_that_is_not_finite_is_refused_with_the_weights_as_they_were(broken: str) -> None:
    model, batch = model_and_batch(recipe())
    if broken == "loss":
        with torch.no_grad():
            model.lm_head.weight[10] = torch.inf
    else:
        model.lm_head.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = parameters(model)
    with pytest.raises(TrainingError, match=r"at step 8 the loss is .* and the gradient norm .* optim.lr below 1$"):
        train_step(model, torch.optim.SGD(model.parameters(), lr=1.0), [batch], recipe(), 7)
    assert torch.equal(parameters(model), before)


def test_a_step_is_the_same_however_it_is_cut_into_microbatches() -> None:
    of = recipe("optim.router_z_loss=0.01", "optim.expert_bias_update_rate=0.01")
    documents = [[(7 * i + j) % 90 + 10 for j in range(length)] for i, length in enumerate((24, 3, 17, 9))]
    masks = [[j % 3 != i for j in range(len(d))] for i, d in enumerate(documents)]
    results, models = [], []
    for cuts in ([4], [1, 3], [1, 1, 1, 1]):
        model, _ = model_and_batch(of)
        ends = [sum(cuts[: i + 1]) for i in range(len(cuts))]
        batches = [build_batch(documents[e - n : e], masks[e - n : e], 1) for e, n in zip(ends, cuts, strict=True)]
        results.append(train_step(model, torch.optim.SGD(model.parameters(), lr=1.0), batches, of, 0))
        models.append(model)
    for result, model in zip(results[1:], models[1:], strict=True):
        assert_close(parameters(model), parameters(models[0]), SUM_ORDER)
        assert_close(result.grad_norm, results[0].grad_norm, SUM_ORDER)
        for name in ("total", "main", "z_loss"):
            assert_close(getattr(result.losses, name), getattr(results[0].losses, name), SUM_ORDER, name)
        assert_close(result.losses.mtp[0], results[0].losses.mtp[0], SUM_ORDER)
        assert_close(result.losses.mtp_correct_fraction[0], results[0].losses.mtp_correct_fraction[0], SUM_ORDER)
        assert int(result.losses.num_learnt) == int(results[0].losses.num_learnt)
        for layer, counts in results[0].counts.items():
            assert torch.equal(result.counts[layer], counts)
        for name, buffer in models[0].named_buffers():
            assert torch.equal(dict(model.named_buffers())[name], buffer), name
