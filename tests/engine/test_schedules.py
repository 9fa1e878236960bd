"""Random schedules: whatever runs beside an answer, drafting changes no token and its layer sees what belongs there."""

import random
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from ling.config.engine import EngineConfig
from ling.engine.core import Engine
from ling.engine.request import SamplingParams
from ling.engine.sequence import Sequence
from ling.testing.models import tiny_model
from ling.testing.text import IdTokenizer

MODELS = [
    tiny_model(head_dim=32, rotary_dim=16, num_nextn_predict_layers=1),
    tiny_model(head_dim=16, rotary_dim=8, num_nextn_predict_layers=2, vocab_size=131, tie_word_embeddings=True),
]
CHOICES: list[dict[str, Any]] = [
    {}, {}, {}, {"top_k": 5}, {"top_p": 0.8, "logprobs": 1}, {"repetition_penalty": 1.3, "min_tokens": 1},
    {"prompt_logprobs": 1}, {"stop_token_ids": [9, 20, 33, 47, 60, 61, 88]},
]  # fmt: skip
Job = tuple[str, int, list[int], dict[str, Any], int | None]
"""A name, the step in which it arrives, its prompt, its parameters, and when it is aborted, if ever."""


def jobs_of(rng: random.Random, vocabulary: int, longest: int) -> list[Job]:
    def some(least: int, most: int) -> list[int]:
        return [rng.randrange(3, vocabulary) for _ in range(rng.randint(least, most))]

    beginnings = [some(1, longest) for _ in range(3)]
    jobs: list[Job] = []
    for i in range(rng.randint(3, 10)):
        own = rng.choice(beginnings)
        prompt = (own[: rng.randint(1, len(own))] + some(0, 3))[: longest - 1]
        params = {
            "temperature": rng.choice([0, 0, 0.7, 1.3]), "seed": rng.choice([0, -5, 7, 2**63 - 1]),
            "max_tokens": rng.choice([1, 2, 5, 30, None]), "n": rng.choice([1, 1, 1, 3]),
            "ignore_eos": rng.random() < 0.7, **rng.choice(CHOICES),
        }  # fmt: skip
        arrival = rng.randint(0, 15)
        jobs.append((f"{i}", arrival, prompt, params, rng.choice([None] * 6 + [arrival + rng.randint(1, 25)])))
    return jobs


class Schedule:
    """An engine that runs jobs; with `rng` drafting is turned on and off at random, and what it reads is checked."""

    def __init__(self, engine: Engine, jobs: list[Job], rng: random.Random | None = None) -> None:
        self.engine, self.jobs = engine, jobs
        self.tokens: dict[tuple[str, int], list[int]] = defaultdict(list)
        self.ends: dict[tuple[str, int], str] = {}
        self.hidden: dict[tuple[int, ...], Tensor] = {}
        self.held: dict[tuple[int, ...], Tensor] = {}
        """By text: the main hidden state of its last token, and what the MTP layer's slot of that token holds."""
        if rng is not None:
            self.watch(rng)

    def watch(self, rng: random.Random) -> None:
        engine, drafter, lengths = self.engine, self.engine._mtp, self.engine.draft_length
        assert drafter is not None
        forward, draft, most, on = engine._forward, drafter.draft, lengths.most, [True]

        def soon(*_: int) -> bool:
            on[0] = on[0] != (rng.random() < 0.15)
            return on[0]

        def seen_forward(sequences: list[Sequence], plan: dict[Sequence, int]) -> tuple[list[Tensor], bool]:
            hidden, finite = forward(sequences, plan)
            for s, rows in zip(sequences, hidden, strict=True):
                text = s.tokens + s.drafts
                for at, row in enumerate(rows, start=s.num_computed + 1):
                    self.hidden[tuple(text[:at])] = row.clone()
            return hidden, finite

        def seen_draft(going: list[Sequence], prefilling: list[Sequence], most: int) -> None:
            everybody = [*going, *prefilling]
            new = [range(s.mtp_next, s.mtp_next + s.num_pending) for s in everybody]
            for s, slots in zip(everybody, new, strict=True):
                for slot, row in zip(slots, torch.cat(s.pending), strict=True):
                    assert torch.equal(row, self.hidden[tuple(s.tokens[:slot])]), (slot, s.mtp_first, s.num_computed)
                for slot in range(s.mtp_first, s.mtp_next):
                    assert torch.equal(self.slot(s, slot), self.held[tuple(s.tokens[: slot + 1])]), (slot, s.mtp_first)
            draft(going, prefilling, most)
            for s, slots in zip(everybody, new, strict=True):
                self.held |= {tuple(s.tokens[: slot + 1]): self.slot(s, slot) for slot in slots}

        lengths.soon = soon
        lengths.choose = lambda _: rng.randint(0, most)
        engine._forward, drafter.draft = seen_forward, seen_draft

    def slot(self, s: Sequence, slot: int) -> Tensor:
        """Return copies of keys and values that the MTP layer has for a slot."""
        cache, layer = self.engine.runner.cache, self.engine.model.config.num_hidden_layers
        at = layer, s.blocks[slot // cache.block_size], slot % cache.block_size
        return torch.stack([cache.keys[at], cache.values[at]])

    def run(self) -> None:
        for step in range(2000):
            for name, arrival, prompt, params, end in self.jobs:
                if step == arrival:
                    self.engine.add(name, prompt, SamplingParams(**params))
                if step == end:
                    self.ends |= {(name, d.index): "abort" for d in self.engine.abort(name)}
            for delta in self.engine.step():
                assert delta.error is None, delta.error
                self.tokens[delta.request_id, delta.index] += delta.token_ids
                if delta.finish_reason:
                    self.ends[delta.request_id, delta.index] = delta.finish_reason
            running = self.engine.scheduler.running
            self.engine.blocks.check([s.blocks for s in running])
            for s in running:
                assert s.mtp_next - 1 + s.num_pending <= s.num_computed < len(s.tokens)
            if not self.engine.has_work and step > 40:
                return
        raise AssertionError("there is no end")


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 200))])
def test_drafting_that_comes_and_goes_changes_no_token_and_reads_what_belongs_there(seed: int) -> None:
    rng = random.Random(seed)
    model = MODELS[seed % 2]
    longest, size, most, seqs = (rng.choice(x) for x in ([24, 60, 100], [1, 2, 4, 8, 16], [1, 2, 3, 6], [1, 3, 8]))
    step, whole = seqs * (1 + most), -(-(longest + most) // size)
    limits: dict[str, Any] = {
        "num_speculative_tokens": most, "max_model_len": longest, "block_size": size, "max_num_seqs": seqs,
        "batch_invariant": True,
        "max_num_batched_tokens": rng.choice([0, step, 40 + step]), "num_blocks": rng.choice([0, whole + 1, 3 * whole]),
        "enable_prefix_caching": rng.random() < 0.8,
    }  # fmt: skip
    jobs = jobs_of(rng, model.config.vocab_size, longest - 1)
    tokenizer = IdTokenizer(model.config.vocab_size)
    plain = Schedule(Engine(model, tokenizer, EngineConfig(drafting="none", **limits)), jobs)
    config = EngineConfig(drafting="mtp", **limits)
    drafted = Schedule(Engine(model, tokenizer, config), jobs, rng)
    plain.run()
    drafted.run()
    assert not drafted.engine._draft_failures
    for answer, reason in drafted.ends.items():
        got, expected = drafted.tokens[answer], plain.tokens[answer]
        if "abort" in (reason, plain.ends[answer]):  # where it stood then depends on drafts
            assert got[: len(expected)] == expected[: len(got)], answer
        else:
            assert (got, reason) == (expected, plain.ends[answer]), answer
