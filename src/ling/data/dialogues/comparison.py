"""Which of two is larger, smaller, or first in the alphabet."""

from random import Random

from ling.data.dialogues.phrasing import ask
from ling.data.dialogues.types import Dialogue, one_turn

_NUMBER_QUESTIONS = (
    "which is {word}, {a} or {b}?", "which number is {word}, {a} or {b}?", "what is {word}, {a} or {b}?",
    "is {a} or {b} {word}?", "{a} or {b}: which is {word}?", "which one is {word}: {a} or {b}?",
    "tell me which is {word}, {a} or {b}.", "of {a} and {b}, which is {word}?",
)  # fmt: skip
_LETTER_QUESTIONS = (
    "which letter comes {word} in the alphabet, {a} or {b}?", "which letter is {word}, {a} or {b}?",
    "does {a} or {b} come {word} in the alphabet?", "{a} or {b}: which letter comes {word}?",
    "of the letters {a} and {b}, which comes {word}?",
)  # fmt: skip
_RELATIONS = {
    "larger": ("larger", "bigger", "greater"),
    "smaller": ("smaller", "less", "lower"),
    "first": ("first", "earlier"),
    "last": ("last", "later"),
}
_OPPOSITE = {"larger": "smaller", "smaller": "larger", "first": "last", "last": "first"}


def draw(random: Random, level: int) -> Dialogue:
    """Ask to compare two numbers, at level 2 also two letters; held out by the pair, in whatever order.

    level 1   numbers 0 to 100
    level 2   numbers 0 to 1000, or letters
    """
    if level == 2 and random.random() < 0.3:
        return _letters(random)
    return _numbers(random, 100 if level == 1 else 1000)


def _numbers(random: Random, largest: int) -> Dialogue:
    low, high = _two_below(random, largest + 1)
    if random.random() < 0.5:
        return _build(random, _NUMBER_QUESTIONS, "larger", "The larger number is {}.", str(high), str(low))
    return _build(random, _NUMBER_QUESTIONS, "smaller", "The smaller number is {}.", str(low), str(high))


def _letters(random: Random) -> Dialogue:
    early, late = (chr(ord("A") + index) for index in _two_below(random, 26))
    if random.random() < 0.5:
        return _build(random, _LETTER_QUESTIONS, "first", "The letter {} comes first.", early, late)
    return _build(random, _LETTER_QUESTIONS, "last", "The letter {} comes last.", late, early)


def _two_below(random: Random, end: int) -> tuple[int, int]:
    """Draw two different numbers in 0 to `end`, half-open, the smaller first; all pairs alike."""
    a, b = random.randrange(end), random.randrange(end - 1)
    b += b >= a
    return min(a, b), max(a, b)


def _build(random: Random, questions: tuple[str, ...], relation: str, answer: str, value: str, other: str) -> Dialogue:
    a, b = (value, other) if random.random() < 0.5 else (other, value)
    core = random.choice(questions).format(a=a, b=b, word=random.choice(_RELATIONS[relation]))
    return one_turn(
        "comparison",
        ask(random, core, plain=0.75),
        answer.format(value),
        expected={"value": value, "others": (other, *_RELATIONS[_OPPOSITE[relation]])},
        split_text=" ".join(sorted((value, other))),
    )
