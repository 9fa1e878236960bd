"""Sums of two numbers. Level 1 is a closed set to learn by heart; level 2 has to be worked out."""

from random import Random

from ling.data.dialogues.phrasing import ask
from ling.data.dialogues.types import Dialogue, one_turn

_SIGN_QUESTIONS = (
    "what is {a} {sign} {b}?", "what's {a} {sign} {b}?", "{a} {sign} {b} = ?", "{a} {sign} {b}?",
    "{a}{sign}{b}=?", "{a}{sign}{b}?", "calculate {a} {sign} {b}.", "how much is {a} {sign} {b}?",
    "what is {a} {word} {b}?", "{a} {word} {b}?", "how much is {a} {word} {b}?", "work out {a} {word} {b}.",
)  # fmt: skip
_ADD_QUESTIONS = ("add {a} and {b}.", "what is the sum of {a} and {b}?", "what do {a} and {b} make?")
_SUBTRACT_QUESTIONS = ("subtract {b} from {a}.", "take {b} from {a}.", "what is {a} less {b}?")

_LEVEL_1 = tuple((larger, part) for larger in range(21) for part in range(larger + 1))
"""A whole of at most 20 and a part of it: each gives one sum and one difference."""


def draw(random: Random, level: int) -> Dialogue:
    """Ask for a sum or a difference.

    level 1   up to 20, held out by wording: every sum is trained, a held-out wording of it is not
    level 2   two-digit addition, held out by operands: neither order of a held-out pair is ever trained
    """
    if level == 1:
        larger, part = random.choice(_LEVEL_1)
        if random.random() < 0.5:
            return _sum(random, larger - part, part)
        return _difference(random, larger, part)
    a, b = random.randrange(10, 100), random.randrange(10, 100)
    return _sum(random, a, b, split_text=f"{min(a, b)} + {max(a, b)}")


def _sum(random: Random, a: int, b: int, *, split_text: str = "") -> Dialogue:
    core = random.choice(_SIGN_QUESTIONS + _ADD_QUESTIONS).format(a=a, b=b, sign="+", word="plus")
    return _build(random, core, f"{a} + {b} = {a + b}.", a + b, split_text)


def _difference(random: Random, a: int, b: int) -> Dialogue:
    core = random.choice(_SIGN_QUESTIONS + _SUBTRACT_QUESTIONS).format(a=a, b=b, sign="-", word="minus")
    return _build(random, core, f"{a} - {b} = {a - b}.", a - b, "")


def _build(random: Random, core: str, answer: str, number: int, split_text: str) -> Dialogue:
    question = ask(random, core, plain=0.75)
    return one_turn("arithmetic", question, answer, expected={"number": number}, split_text=split_text)
