"""Draw dialogues: for training by weight, for evaluation from the held-out side of the split."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from itertools import accumulate
from random import Random

from ling.data.dialogues import (
    arithmetic,
    comparison,
    facts,
    greetings,
    identity,
    memory,
    stories,
    tool_calls,
)
from ling.data.dialogues.split import heldout
from ling.data.dialogues.types import Dialogue
from ling.errors import DataError

_DRAW: dict[str, Callable[[Random, int], Dialogue]] = {
    "identity": identity.draw,
    "greetings": greetings.draw,
    "facts": facts.draw,
    "arithmetic": arithmetic.draw,
    "comparison": comparison.draw,
    "stories": stories.draw,
    "tool_calls": tool_calls.draw,
    "memory": memory.draw,
}

TASKS: tuple[str, ...] = tuple(_DRAW)

LEVELS = (1, 2)
"""Level 2 is harder arithmetic, comparison, memory and tool_calls; the other tasks have one level."""

DEFAULT_WEIGHTS: Mapping[str, float] = {
    "identity": 0.12,
    "greetings": 0.12,
    "facts": 0.30,
    "arithmetic": 0.11,
    "comparison": 0.08,
    "stories": 0.15,
    "tool_calls": 0.08,   # few, because the template's text around the tools makes each four times as long
    "memory": 0.04,
}  # fmt: skip

_PATIENCE = 10_000
"""Draws without a new held-out prompt after which there is none left to find, in practice."""


def generate(task: str, random: Random, *, level: int = 1) -> Dialogue:
    """Draw one dialogue of a task, from either side of the split."""
    if task not in _DRAW:
        raise DataError(_unknown_task(task))
    if level not in LEVELS:
        raise DataError(f"dialogue level must be 1 or 2, got {level}")
    return _DRAW[task](random, level)


def training_dialogue(random: Random, weights: Mapping[str, float] | None = None, *, level: int = 1) -> Dialogue:
    """Draw one dialogue that is not held out.

    weights   task to share, in any unit; tasks left out are not drawn. `DEFAULT_WEIGHTS` if None
    level     one of `LEVELS`
    """
    task = _draw_task(random, DEFAULT_WEIGHTS if weights is None else weights)
    while True:
        dialogue = generate(task, random, level=level)
        if not heldout(dialogue.key):
            return dialogue


def heldout_set(task: str, count: int, *, seed: int = 0, level: int = 1) -> list[Dialogue]:
    """Draw `count` held-out dialogues of a task, no two with the same wording. The seed fixes the list."""
    random = Random(f"held-out {task} {level} {seed}")
    found: dict[str, Dialogue] = {}
    idle_draws = 0
    while len(found) < count:
        dialogue = generate(task, random, level=level)
        if heldout(dialogue.key) and dialogue.wording not in found:
            found[dialogue.wording] = dialogue
            idle_draws = 0
        else:
            idle_draws += 1
        if idle_draws > _PATIENCE:
            raise DataError(
                f"task {task} at level {level} has about {len(found)} distinct held-out prompts, "
                f"{count} were asked for. Ask for at most {len(found)}."
            )
    return list(found.values())


def _draw_task(random: Random, weights: Mapping[str, float]) -> str:
    for task, weight in weights.items():
        if task not in _DRAW:
            raise DataError(_unknown_task(task))
        if not 0 <= weight < float("inf"):
            raise DataError(f"the weight of dialogue task {task} must be finite and at least 0, got {weight}")
    # In the order of TASKS, so that the order in which someone wrote the weights does not matter.
    shares = list(accumulate(weights.get(task, 0.0) for task in TASKS))
    if not shares[-1] > 0:
        raise DataError(f"the weights of the dialogue tasks must have a positive sum, got {dict(weights)}")
    return random.choices(TASKS, cum_weights=shares)[0]


def _unknown_task(task: str) -> str:
    close = get_close_matches(task, TASKS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"the tasks are {', '.join(TASKS)}."
    return f"unknown dialogue task {task}; {hint}"
