"""`LingForCausalLM` against reference numbers from an independent implementation (tests/golden/README.md)."""

from typing import Any

import pytest
import torch
from tests.golden_cases import GOLDEN as CASES
from tests.golden_cases import Run, packed_labels, published_gradients, reference_losses, runs
from transformers import DynamicCache, GenerationConfig

from ling.compat.hf import LingForCausalLM
from ling.testing.tolerances import (
    GOLDEN,
    GOLDEN_FAR,
    GOLDEN_FAR_LOSS,
    GOLDEN_GRAD,
    GOLDEN_LOSS,
    assert_close,
)

FORWARD = [run for run in runs("forward") if run.case not in ("bf16", "ties_raw")]


def load(run: Run, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> LingForCausalLM:
    return LingForCausalLM.from_pretrained(CASES / "forward" / run.case, dtype=dtype, attn_implementation=attention)


def padded(run: Run) -> dict[str, Any]:
    """Return the run as transformers gives it to a model."""
    mask = run.data.get("in.attention_mask")
    return {"input_ids": run.ids, "attention_mask": mask, "position_ids": run.positions}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("run", FORWARD, ids=str)
def test_every_float32_case_gives_the_reference_numbers(run: Run, attention: str) -> None:
    model = load(run, attention)
    with torch.no_grad():
        output = model(
            **padded(run), labels=run.data.get("in.labels"), output_hidden_states=True, output_router_logits=True
        )
    tolerance = GOLDEN_FAR if run.far else GOLDEN
    found = {"out.logits": output.logits, "out.final_hidden": output.hidden_states[-1]}
    found["out.embeddings"] = output.hidden_states[0]
    found |= {f"out.layers.{i}.hidden": h for i, h in enumerate(output.hidden_states[1:-1])}
    sparse = range(model.config.first_k_dense_replace, model.config.num_hidden_layers)
    found |= {f"out.layers.{i}.router_logits": logits for i, (logits, _) in zip(sparse, output.router_logits)}
    for name, got in found.items():
        if name in run.data:
            assert_close(run.pack(got)[run.compared], run.expected(name), tolerance, f"{run} {name}")
    assert len(output.router_logits) == len(sparse)
    if run.case != "ties":
        for i, (_, ids) in zip(sparse, output.router_logits):
            wanted = run.expected(f"out.layers.{i}.topk_idx").sort(1).values
            assert torch.equal(run.pack(ids)[run.compared].sort(1).values, wanted)


@pytest.mark.parametrize("run", [run for run in FORWARD if "in.labels" in run.data], ids=str)
def test_losses_are_the_reference_ones(run: Run) -> None:
    model = load(run)
    with torch.no_grad():
        output = model(**padded(run), labels=run.data["in.labels"])
    tolerance = GOLDEN_FAR_LOSS if run.far else GOLDEN_LOSS
    wanted, wanted_mtp = reference_losses(model.config.to_ling(), run)
    assert_close(output.loss, wanted, tolerance, "loss")
    for got, expected in zip(output.mtp_loss or (), wanted_mtp, strict=True):
        assert_close(got, expected, tolerance, "mtp loss")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("run", runs("train"), ids=str)
def test_every_gradient_matches_with_and_without_recomputation(run: Run, checkpointing: bool) -> None:
    model = load(run).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    loss = model(**padded(run), labels=run.data["in.labels"]).loss
    loss.backward()
    assert_close(loss, run.data["out.loss"].squeeze(), GOLDEN_LOSS, "loss")
    wanted = {k.removeprefix("out.grad."): v for k, v in run.data.items() if k.startswith("out.grad.")}
    gradients = published_gradients(model, model.config.to_ling())
    assert wanted.keys() == gradients.keys()
    for name, expected in wanted.items():
        assert_close(gradients[name], expected, GOLDEN_GRAD, name)


def test_a_loss_summed_over_microbatches_is_the_mean_over_all_of_them() -> None:
    (run,) = (run for run in runs("forward") if str(run) == "mtp1-batch")
    model, labels = load(run), run.data["in.labels"]
    count = int((labels[:, 1:] != -100).sum())
    ahead = packed_labels(run, 1)[1]
    with torch.no_grad():
        whole = model(input_ids=run.ids, labels=labels)
        parts = [
            model(input_ids=ids[None], labels=wanted[None], num_items_in_batch=count)
            for ids, wanted in zip(run.ids, labels, strict=True)
        ]
    main = whole.loss - model.config.mtp_loss_scaling_factor * whole.mtp_loss[0]
    mtp = whole.mtp_loss[0] * int((ahead != -100).sum()) / count
    assert_close(
        sum(part.loss for part in parts), main + model.config.mtp_loss_scaling_factor * mtp, GOLDEN_LOSS, "summed"
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("run", runs("cache"), ids=str)
@torch.no_grad()
def test_a_cache_filled_in_chunks_gives_the_reference_logits(run: Run, attention: str) -> None:
    model = load(run, attention)
    cache, first = DynamicCache(config=model.config), 0
    for length in run.data["in.chunk_lengths"].tolist():
        piece = slice(first, first + length)
        first += length
        output = model(
            input_ids=run.ids[:, piece], position_ids=run.positions[:, piece], past_key_values=cache,
            attention_mask=run.mask[:, :first].long(), use_cache=True,
        )  # fmt: skip
        mask = run.mask[:, piece]
        assert_close(output.logits[mask], run.data["out.step_logits"][:, piece][mask], GOLDEN, f"up to {first}")
    for layer in range(model.config.num_hidden_layers):
        for name in ("key", "value"):
            held = getattr(cache.layers[layer], f"{name}s").transpose(1, 2)
            assert_close(held[run.mask], run.data[f"out.cache.{layer}.{name}"].transpose(1, 2)[run.mask], GOLDEN, name)


@pytest.mark.parametrize("cache", ["dynamic", "static", None])
@pytest.mark.parametrize("run", runs("generate"), ids=str)
def test_generated_tokens_are_the_reference_ones(run: Run, cache: str | None) -> None:
    model = load(run, dtype=torch.bfloat16 if run.case == "bf16" else torch.float32)
    stop = run.data.get("in.eos_token_id")
    options = GenerationConfig(
        max_new_tokens=int(run.data["in.max_new_tokens"]), do_sample=False, pad_token_id=model.config.pad_token_id,
        eos_token_id=None if stop is None else stop.flatten().tolist(), use_cache=cache is not None,
        cache_implementation=cache if cache == "static" else None,
    )  # fmt: skip
    tokens = model.generate(run.ids, attention_mask=run.mask.long(), generation_config=options)
    assert tokens[:, run.ids.shape[1] :].tolist() == run.data["out.greedy_ids"].tolist()
