"""Incremental decoding and greedy generation against the reference numbers."""

import pytest
import torch
from tests.golden_cases import Run, load_case, runs

from ling.engine.cache import PagedCache, Part, lay_out
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams
from ling.testing.text import IdTokenizer
from ling.testing.tolerances import GOLDEN, assert_close

BLOCK = 4


@pytest.mark.parametrize("run", runs("cache"), ids=str)
@torch.no_grad()
def test_decoding_in_chunks_gives_the_reference_logits_and_cache(run: Run) -> None:
    model = load_case(run.case)
    B, S = run.ids.shape
    per_sequence = -(-S // BLOCK)
    cache = PagedCache(model.config, B * per_sequence, BLOCK, torch.float32, torch.device("cpu"))
    # Blocks of a sequence lie apart and backwards, as in a pool that has been used.
    blocks = [[per_sequence * B - 1 - (i * B + b) for i in range(per_sequence)] for b in range(B)]
    done = torch.zeros(B, dtype=torch.int64)
    first = 0
    for length in run.data["in.chunk_lengths"].tolist():
        piece = slice(first, first + length)
        first += length
        mask = run.mask[:, piece]
        counts = mask.sum(1)
        active = [b for b in range(B) if counts[b]]
        batch = lay_out(cache, [Part(blocks[b], int(done[b]), int(counts[b])) for b in active])
        step = (run.ids, run.data["out.step_logits"], run.positions)
        ids, wanted, positions = ([x[b, piece][mask[b]] for b in active] for x in step)
        order = batch.order
        output = model(torch.cat([ids[i] for i in order]), torch.cat([positions[i] for i in order]), batch)
        done += counts
        assert_close(model.logits(output.hidden), torch.cat([wanted[i] for i in order]), GOLDEN, f"{run} up to {first}")
    for layer in range(model.config.num_hidden_layers):
        for name, held in (("key", cache.keys), ("value", cache.values)):
            wanted = run.data[f"out.cache.{layer}.{name}"].transpose(1, 2)  # (B, S, K, D)
            for b in range(B):
                got = held[layer][blocks[b]].flatten(0, 1)[: done[b]]
                assert_close(got, wanted[b][run.mask[b]], GOLDEN, f"{run} layer {layer} {name}")


@pytest.mark.parametrize("num_drafts", [0, 1, 3])
@pytest.mark.parametrize("run", [r for r in runs("generate") if r.case != "bf16"], ids=str)
def test_greedy_tokens_are_the_reference_ones_with_and_without_drafting(run: Run, num_drafts: int) -> None:
    model = load_case(run.case)
    llm = LLM(model, IdTokenizer(model.config.vocab_size), num_speculative_tokens=num_drafts, adaptive_drafts=False)
    stop = run.data.get("in.eos_token_id")
    llm.engine.stop_ids = set() if stop is None else set(stop.flatten().tolist())
    prompts = [ids[mask].tolist() for ids, mask in zip(run.ids, run.mask, strict=True)]
    count = int(run.data["in.max_new_tokens"])
    done = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=count))
    for completion, wanted in zip(done, run.data["out.greedy_ids"].tolist(), strict=True):
        got = completion.outputs[0].token_ids
        assert got == wanted[: len(got)]
        assert set(wanted[len(got) :]) <= {model.config.pad_token_id}


def test_greedy_tokens_in_bfloat16() -> None:
    (run,) = (r for r in runs("generate") if r.case == "bf16")
    model = load_case(run.case, torch.bfloat16)
    llm = LLM(model, IdTokenizer(model.config.vocab_size))
    llm.engine.stop_ids = set()
    prompts = [ids[mask].tolist() for ids, mask in zip(run.ids, run.mask, strict=True)]
    done = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=int(run.data["in.max_new_tokens"])))
    assert [c.outputs[0].token_ids for c in done] == run.data["out.greedy_ids"].tolist()
