"""Held-out data between two steps, measured over the weights as they are."""

import json
from pathlib import Path

from ling.cli.train.data import Data
from ling.model import CausalLM

NAME = "evaluations.jsonl"
_SHOWN = {
    "evaluation/loss": "{:.3f} nats per learnt token", "evaluation/bits_per_byte": "{:.3f} bits per byte",
    "evaluation/tasks_percent": "{:.1f} % of tasks",
}  # fmt: skip


class Evaluation:
    """Measures what a run holds; each measurement is a line of `evaluations.jsonl`."""

    def __init__(self, directory: Path, data: Data, model: CausalLM, done: int, *, writes: bool = True) -> None:
        """Begin after `done` steps: lines of later ones are going to be written again.

        writes  whether this process writes the lines; all ranks measure together
        """
        self._writes = writes
        self._path = directory / NAME
        self._data = data
        self._model = model
        self.steps: set[int] = set()
        """At which it was measured."""
        if self._path.exists():
            lines = [json.loads(x) for x in self._path.read_text(encoding="utf-8").splitlines() if x.endswith("}")]
            self.steps = {line["step"] for line in lines if line["step"] <= done}
            kept = "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= done)
            if writes:
                self._path.write_text(kept, encoding="utf-8")

    def run(self, step: int) -> dict[str, float]:
        """Measure now; return the numbers under stable names."""
        found = self._data.measure(self._model)
        if self._writes:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **found}) + "\n")
        self.steps.add(step)
        return found


def summary(step: int, found: dict[str, float]) -> str:
    """Say what a measurement found, on one line."""
    shown = [form.format(found[name]) for name, form in _SHOWN.items() if name in found]
    return f"step {step}: held out  {'  '.join(shown) or 'nothing'}"
