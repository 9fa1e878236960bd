"""Generated dialogues: endless, seeded, of our own making, and each with an exact scorer.

What a model of a few million parameters can learn in minutes: who it is, small talk, some facts, small sums,
short stories about what the prompt names, and tool calls. `split.py` has the rule for what is held out.
"""

from ling.data.dialogues.generate import (
    DEFAULT_WEIGHTS,
    LEVELS,
    TASKS,
    generate,
    heldout_set,
    training_dialogue,
)
from ling.data.dialogues.scoring import answer_text, score
from ling.data.dialogues.split import canonical, heldout
from ling.data.dialogues.types import Dialogue

__all__ = [
    "DEFAULT_WEIGHTS",
    "LEVELS",
    "TASKS",
    "Dialogue",
    "answer_text",
    "canonical",
    "generate",
    "heldout",
    "heldout_set",
    "score",
    "training_dialogue",
]
