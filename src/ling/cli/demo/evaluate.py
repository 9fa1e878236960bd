"""What the trained model can do: held-out tasks, held-out real text, and what drafting gains."""

import time
from dataclasses import dataclass
from typing import Any

from ling.checkpoint.save import Precision
from ling.cli.demo.export import Exported
from ling.cli.demo.prepare import Prepared
from ling.data.dialogues import Dialogue, heldout_set
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams
from ling.engine.stats import EngineStats
from ling.eval.bits_per_byte import bits_per_byte, ngram_bits_per_byte
from ling.eval.byte_ngram import ByteNgram
from ling.eval.tasks import TaskResult, run_task

GATED_PROMPTS = {"identity": 60, "greetings": 60, "facts": 80}
"""The 200 prompts that the demo promises to answer: unseen phrasings of what it was taught."""
OTHER_PROMPTS = {"arithmetic": 50, "comparison": 50, "stories": 50, "tool_calls": 50, "memory": 50}

_ANSWER_TOKENS = 120
_BASELINE_ORDERS = (2, 3)
_SPECULATION_PROMPTS = 16


def run_tasks(llm: LLM, level: int) -> list[TaskResult]:
    """Score every task on held-out prompts."""

    def answer(dialogues: Any) -> list[str]:
        params = SamplingParams(temperature=0, max_tokens=_ANSWER_TOKENS)
        tools = [d.tools for d in dialogues]
        return [r.outputs[0].text for r in llm.chat([d.prompt for d in dialogues], params, tools=tools)]

    counts = {**GATED_PROMPTS, **OTHER_PROMPTS}
    return [run_task(answer, task, count, level=level) for task, count in counts.items()]


def gated_percent(results: list[TaskResult]) -> float:
    """Return the share of right answers to the promised prompts."""
    gated = [r for r in results if r.task in GATED_PROMPTS]
    return 100 * sum(r.correct for r in gated) / sum(r.total for r in gated)


def measure_text(exported: dict[Precision, Exported], prepared: Prepared) -> dict[str, float]:
    """Return bits per byte of the held-out books: of each export, and of byte n-gram models of the same text."""
    tokenizer, held = prepared.tokenizer, prepared.heldout_books
    window = prepared.mix.recipe.data.max_document_tokens
    measured: dict[str, float] = {}
    for precision, export in exported.items():
        score = LLM(export.model, tokenizer).negative_log_likelihoods
        measured[precision] = bits_per_byte(score, tokenizer, held, window=window, stride=window // 2).value
    baseline = ByteNgram(max(_BASELINE_ORDERS)).fit([text.encode() for text in prepared.training_books])
    for order in _BASELINE_ORDERS:
        measured[f"byte_ngram_{order}"] = ngram_bits_per_byte(baseline, tokenizer, held, order).value
    return measured


@dataclass(frozen=True, slots=True)
class Speculation:
    """Greedy decoding one prompt at a time, with and without MTP drafting, in turns.

    acceptance_percent            of one draft in every step
    tokens_per_second_drafting    with as many as the engine chooses
    """

    same_text: bool
    prompts: int
    tokens: int
    acceptance_percent: float
    tokens_per_second_plain: float
    tokens_per_second_drafting: float

    @property
    def speedup(self) -> float:
        return self.tokens_per_second_drafting / self.tokens_per_second_plain


def compare_speculation(llm: LLM) -> Speculation:
    """Decode held-out story prompts in each way and compare texts and speed."""
    options: dict[str, Any] = {"max_num_seqs": 1, "enable_prefix_caching": False}
    ways: dict[str, dict[str, Any]] = {
        "plain": {"drafting": "none"},
        "one draft": {"num_speculative_tokens": 1, "adaptive_drafts": False},
        "drafting": {},
    }
    engines = {name: LLM(llm.model, llm.tokenizer, **own, **options) for name, own in ways.items()}
    params = SamplingParams(temperature=0, max_tokens=_ANSWER_TOKENS)
    prompts: list[Dialogue] = heldout_set("stories", _SPECULATION_PROMPTS)
    same, totals = True, {name: EngineStats() for name in engines}
    for i, dialogue in enumerate([prompts[0], *prompts]):
        texts = []
        for name, engine in engines.items():
            start = time.perf_counter()
            texts.append(engine.chat([dialogue.prompt], params)[0].outputs[0].token_ids)
            if i:  # the first prompt warms all up
                total = totals[name]
                total.seconds += time.perf_counter() - start
                total.tokens += engine.stats.tokens
                total.drafted += engine.stats.drafted
                total.accepted += engine.stats.accepted
        same = same and texts[0] == texts[1] == texts[2]
    return Speculation(
        same_text=same,
        prompts=len(prompts),
        tokens=totals["plain"].tokens,
        acceptance_percent=100 * totals["one draft"].acceptance_fraction,
        tokens_per_second_plain=totals["plain"].tokens_per_second,
        tokens_per_second_drafting=totals["drafting"].tokens_per_second,
    )
