"""Held-out generated dialogues, scored exactly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ling.data.dialogues import Dialogue, heldout_set, score

Answer = Callable[[Sequence[Dialogue]], list[str]]
"""Gives the text of each dialogue's answer, without its end-of-turn token."""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """How many answers of one task were right, and what was said."""

    task: str
    correct: int
    dialogues: tuple[Dialogue, ...]
    answers: tuple[str, ...]

    @property
    def total(self) -> int:
        return len(self.dialogues)

    @property
    def correct_percent(self) -> float:
        return 100 * self.correct / self.total


def run_task(answer: Answer, task: str, count: int, *, level: int = 1) -> TaskResult:
    """Score `count` held-out prompts of `task`; the set is the same for every model."""
    dialogues = heldout_set(task, count, level=level)
    answers = answer(dialogues)
    correct = sum(score(dialogue, text) for dialogue, text in zip(dialogues, answers, strict=True))
    return TaskResult(task, correct, tuple(dialogues), tuple(answers))
