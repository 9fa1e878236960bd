"""The engine on the model in the package, one thread: what drafts gain, what wrong ones cost, what batches gain.

    python -m benchmarks.run engine_embedded

Prompts are held-out stories and conversations, others in each pair and the same on both sides of it; speeds are of
whole requests, their prompts included. Engines live through all their pairs, as a server's does.
"""

import json
import sys
import tempfile
import time
from collections.abc import Collection
from collections.abc import Sequence as SequenceOf
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import describe_machine, save
from benchmarks.turns import Measure, take_turns
from ling.checkpoint.convert import to_safetensors
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.save import ExportFormat
from ling.data.dialogues import heldout_set
from ling.engine.bundled import bundled_directory
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams
from ling.engine.sequence import Sequence
from ling.engine.speculative import MtpDrafter

PAIRS = 20
BATCHES = (1, 4, 16)
MAX_TOKENS = 120
"""Answers end by themselves, after about 50 tokens in stories and 10 elsewhere."""
FULL_BATCH_TOKENS = 48
"""Of each of 16 answers that go on past their end, so that all run to the last step."""
TARGETS = {"drafts over none, batch 1,": 1.15, "wrong drafts over none": 0.97, "16 streams over 1": 3.0}
"""Least ratio, by how an entry's name begins."""
FP8_ACCEPTANCE_POINTS = 3.0
"""How far acceptance with FP8 weights may lie from that with BF16 ones."""


class AlwaysWrong(MtpDrafter):
    """Does all the work of drafting and proposes the token beside the one it found."""

    def draft(self, going: SequenceOf[Sequence], prefilling: SequenceOf[Sequence], most: int) -> None:
        super().draft(going, prefilling, most)
        for s in going:
            s.drafts = [self._beside(token, s.stop_ids) for token in s.drafts]

    def _beside(self, token: int, never: Collection[int]) -> int:
        following = ((token + i) % self.runner.model.config.vocab_size for i in count(1))
        return next(other for other in following if other not in never)


def main() -> None:
    torch.set_num_threads(1)
    bundled = LLM(bundled_directory())
    prompts = draw_prompts(bundled)
    numbers: dict[str, Any] = {}
    for measure in (speed_of_drafts, cost_of_wrong_drafts, gain_of_batches, cost_of_invariance, drafts_with_fp8):
        numbers |= measure(bundled, prompts)
        print(json.dumps(numbers, indent=2), flush=True)
    print(describe_machine())
    print(save("engine-embedded", numbers).name)
    missed = [
        f"{name}: {entry['ratio']}, target {least}"
        for begin, least in TARGETS.items()
        for name, entry in numbers.items()
        if name.startswith(begin) and entry["ratio"] < least
    ]
    missed += [f"{name}: {entry}" for name, entry in numbers.items() if entry.get("within", True) is False]
    print("\n".join(f"missed: {line}" for line in missed) or "every target is met")
    sys.exit(1 if missed else 0)


def draw_prompts(llm: LLM) -> list[list[int]]:
    """Return prompts of conversations, two stories to one of something else."""
    stories = iter(heldout_set("stories", 240, seed=1))
    others = [d for task in ("facts", "greetings", "arithmetic", "memory") for d in heldout_set(task, 30, seed=1)]
    mixed = [dialogue for other in others for dialogue in (next(stories), next(stories), other)]
    return [llm.chat_prompt(d.messages[:-1]) for d in mixed if d.messages[-1]["role"] == "assistant"]


def beside(bundled: LLM, batch: int, **options: Any) -> LLM:
    """Return an engine of its own over the same weights that runs `batch` answers at once."""
    return LLM(bundled.model, bundled.tokenizer, max_num_seqs=batch, **options)


def answering(llm: LLM, prompts: list[list[int]], each: int, **sampling: Any) -> Measure:
    """Return a measure: tokens per second over `each` prompts of the round."""

    def measure(index: int) -> float:
        chosen = [prompts[(index * each + i) % len(prompts)] for i in range(each)]
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": MAX_TOKENS, "seed": index, **sampling})
        begin = time.perf_counter()
        done = llm.generate(chosen, params)
        return sum(len(o.outputs[0].token_ids) for o in done) / (time.perf_counter() - begin)

    return measure


def asked(batch: int) -> int:
    """Return how many prompts make a measurement of about a second."""
    return 12 if batch == 1 else 3 * batch


def speed_of_drafts(bundled: LLM, prompts: list[list[int]]) -> dict[str, Any]:
    found = {}
    for temperature in (0.0, 0.7):
        for batch in BATCHES:
            mtp, none = beside(bundled, batch, drafting="mtp"), beside(bundled, batch, drafting="none")
            sides = {
                name: answering(llm, prompts, asked(batch), temperature=temperature)
                for name, llm in (("drafts", mtp), ("none", none))
            }
            entry = take_turns(sides, rounds=PAIRS)
            entry["accepted_fraction"] = round(mtp.engine.stats.acceptance_fraction, 3)
            found[f"drafts over none, batch {batch}, temperature {temperature:g}"] = entry
    return found


def cost_of_wrong_drafts(bundled: LLM, prompts: list[list[int]]) -> dict[str, Any]:
    found = {}
    for batch in BATCHES:
        wrong, none = beside(bundled, batch, drafting="mtp"), beside(bundled, batch, drafting="none")
        wrong.engine._mtp = AlwaysWrong(wrong.engine.runner)
        sides = {"wrong": answering(wrong, prompts, asked(batch)), "none": answering(none, prompts, asked(batch))}
        entry = take_turns(sides, rounds=PAIRS)
        stats = wrong.engine.stats
        entry["accepted_fraction"] = round(stats.acceptance_fraction, 3)
        entry["drafted_per_token"] = round(stats.drafted / stats.tokens, 4)
        found[f"wrong drafts over none, batch {batch}"] = entry
    return found


def gain_of_batches(bundled: LLM, prompts: list[list[int]]) -> dict[str, Any]:
    found = {}
    for drafting in ("mtp", "none"):
        sides = {
            f"{batch}_streams": answering(
                beside(bundled, batch, drafting=drafting), prompts, 16, max_tokens=FULL_BATCH_TOKENS, ignore_eos=True
            )
            for batch in (16, 1)
        }
        found[f"16 streams over 1, drafts {drafting}"] = take_turns(sides, rounds=PAIRS // 2)
    return found


def cost_of_invariance(bundled: LLM, prompts: list[list[int]]) -> dict[str, Any]:
    found = {}
    for batch in (1, 16):
        sides = {
            name: answering(beside(bundled, batch, batch_invariant=name == "invariant"), prompts, asked(batch))
            for name in ("invariant", "plain")
        }
        found[f"batch invariance over none, batch {batch}"] = take_turns(sides, rounds=PAIRS // 2)
    return found


def drafts_with_fp8(bundled: LLM, prompts: list[list[int]]) -> dict[str, Any]:
    """Compare the share of accepted drafts, always three of them, and answers with drafts to those without."""
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch, "fp8")
        to_safetensors(open_pieces(bundled_directory()), directory, ExportFormat(precision="float8"))
        weights = {
            "bf16": bundled,
            "fp8 dequantized": LLM(directory),
            "fp8 kept": LLM(directory, quantization="fp8"),
        }
    found: dict[str, Any] = {}
    for name, llm in weights.items():
        drafting = beside(llm, 16, drafting="mtp", adaptive_drafts=False)
        texts = [o.outputs[0].token_ids for o in drafting.generate(prompts[:120], params)]
        plain = [o.outputs[0].token_ids for o in beside(llm, 16, drafting="none").generate(prompts[:120], params)]
        percent = 100 * drafting.engine.stats.acceptance_fraction
        reference = found.get("acceptance, bf16", {"accepted_percent": percent})["accepted_percent"]
        same = sum(a == b for a, b in zip(texts, plain, strict=True))
        found[f"acceptance, {name}"] = {
            "accepted_percent": round(percent, 2),
            "answers": len(texts),
            "same_without_drafts": same,
            "within": abs(percent - reference) <= FP8_ACCEPTANCE_POINTS,
        }
    return found


if __name__ == "__main__":
    main()
