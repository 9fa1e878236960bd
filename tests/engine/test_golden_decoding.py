"""Incremental decoding and greedy generation against the reference numbers."""

import pytest
import torch
from tests.golden_cases import Run, load_case, runs

from ling.engine.cache import KVCache, lay_out
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams
from ling.testing.text import IdTokenizer
from ling.testing.tolerances import GOLDEN, assert_close


@pytest.mark.parametrize("run", runs("cache"), ids=str)
@torch.no_grad()
def test_decoding_in_chunks_gives_the_reference_logits_and_cache(run: Run) -> None:
    model = load_case(run.case)
    B, S = run.ids.shape
    cache = KVCache(model.config, B, S, torch.float32, torch.device("cpu"))
    done = torch.zeros(B, dtype=torch.int64)
    first = 0
    for length in run.data["in.chunk_lengths"].tolist():
        piece = slice(first, first + length)
        first += length
        mask = run.mask[:, piece]
        counts = mask.sum(1)
        active = [b for b in range(B) if counts[b]]
        batch = lay_out(cache, active, done[active].tolist(), counts[active].tolist())
        output = model(run.ids[:, piece][mask], run.positions[:, piece][mask], batch)
        done += counts
        wanted = run.data["out.step_logits"][:, piece][mask]
        assert_close(model.logits(output.hidden), wanted, GOLDEN, f"{run} logits up to {first}")
    for layer in range(model.config.num_hidden_layers):
        for name, held in (("key", cache.keys), ("value", cache.values)):
            wanted = run.data[f"out.cache.{layer}.{name}"].transpose(1, 2)  # (B, S, K, D)
            for b in range(B):
                got = held[layer, b, : done[b]]
                assert_close(got, wanted[b][run.mask[b]], GOLDEN, f"{run} layer {layer} {name}")


@pytest.mark.parametrize("num_drafts", [0, 1, 3])
@pytest.mark.parametrize("run", [r for r in runs("generate") if r.case != "bf16"], ids=str)
def test_greedy_tokens_are_the_reference_ones_with_and_without_drafting(run: Run, num_drafts: int) -> None:
    model = load_case(run.case)
    llm = LLM(model, IdTokenizer(model.config.vocab_size), num_drafts=num_drafts)
    stop = run.data.get("in.eos_token_id")
    llm.stop_ids = set() if stop is None else set(stop.flatten().tolist())
    prompts = [ids[mask].tolist() for ids, mask in zip(run.ids, run.mask, strict=True)]
    count = int(run.data["in.max_new_tokens"])
    done = llm.generate(prompts, SamplingParams(max_tokens=count))
    for completion, wanted in zip(done, run.data["out.greedy_ids"].tolist(), strict=True):
        got = completion.token_ids
        assert got == wanted[: len(got)]
        assert set(wanted[len(got) :]) <= {model.config.pad_token_id}


def test_greedy_tokens_in_bfloat16() -> None:
    (run,) = (r for r in runs("generate") if r.case == "bf16")
    model = load_case(run.case, torch.bfloat16)
    llm = LLM(model, IdTokenizer(model.config.vocab_size))
    llm.stop_ids = set()
    prompts = [ids[mask].tolist() for ids, mask in zip(run.ids, run.mask, strict=True)]
    done = llm.generate(prompts, SamplingParams(max_tokens=int(run.data["in.max_new_tokens"])))
    assert [c.token_ids for c in done] == run.data["out.greedy_ids"].tolist()
