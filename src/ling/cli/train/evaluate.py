"""Held-out text and generated tasks between two steps, measured by the engine over the weights as they are."""

import json
from pathlib import Path
from typing import Any

from ling.cli.train.data import BuiltIn
from ling.config.recipe import Recipe
from ling.data.dialogues import TASKS
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams
from ling.eval.bits_per_byte import bits_per_byte
from ling.eval.tasks import run_task
from ling.train.loop import Training

NAME = "evaluations.jsonl"
_ANSWER_TOKENS = 64


class Evaluation:
    """Measures what a run holds; each measurement is a line of `evaluations.jsonl`."""

    def __init__(self, recipe: Recipe, directory: Path, data: BuiltIn, training: Training) -> None:
        self._recipe = recipe
        self._path = directory / NAME
        self._data = data
        self._training = training
        self._last: dict[str, float] = {}
        self._window = recipe.data.max_document_tokens
        self._heldout = self._text()
        self._forget_after(training.state.step)

    def run(self, step: int) -> dict[str, float]:
        """Measure now; return the numbers under stable names."""
        llm = LLM(self._training.state.model, self._data.tokenizer, num_drafts=0)
        found: dict[str, float] = {}
        if self._heldout:
            found["evaluation/bits_per_byte"] = bits_per_byte(
                llm.negative_log_likelihoods, self._data.tokenizer, self._heldout,
                window=self._window, stride=self._window // 2,
            ).value  # fmt: skip
        if prompts := self._recipe.run.evaluate_prompts:
            results = [run_task(_answers(llm), task, prompts, level=self._recipe.data.dialogue_level) for task in TASKS]
            found |= {f"evaluation/tasks/{result.task}_percent": result.correct_percent for result in results}
            correct, total = sum(r.correct for r in results), sum(r.total for r in results)
            found["evaluation/tasks_percent"] = 100 * correct / total
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **found}) + "\n")
        self._last = {"step": step, **found}
        return found

    def summary(self) -> str:
        """Say what the last measurement found, on one line."""
        parts = [f"step {self._last['step']}: held out"]
        if "evaluation/bits_per_byte" in self._last:
            parts.append(f"{self._last['evaluation/bits_per_byte']:.3f} bits per byte")
        if "evaluation/tasks_percent" in self._last:
            parts.append(f"{self._last['evaluation/tasks_percent']:.1f} % of tasks")
        return "  ".join(parts)

    def _text(self) -> list[str]:
        """Return held-out documents of about `evaluate_tokens` tokens."""
        texts, tokens = [], 0
        for text in self._data.heldout:
            if tokens >= self._recipe.run.evaluate_tokens:
                break
            texts.append(text)
            tokens += len(self._data.tokenizer.encode(text, special=False))
        return texts

    def _forget_after(self, step: int) -> None:
        """Drop lines of steps that are going to be done again."""
        if not self._path.exists():
            return
        lines = [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step)
        self._path.write_text(kept, encoding="utf-8")


def _answers(llm: LLM) -> Any:
    def answer(dialogues: Any) -> list[str]:
        params = SamplingParams(max_tokens=_ANSWER_TOKENS)
        return [c.text for c in llm.chat([d.prompt for d in dialogues], params, tools=[d.tools for d in dialogues])]

    return answer
