"""Things to remember for a moment: the answer can only be copied from the prompt."""

from collections.abc import Mapping
from random import Random

from ling.data.dialogues.phrasing import NAMES, finish
from ling.data.dialogues.types import Dialogue, one_turn

_CODE_NEEDLES = (
    "remember: the code is {}.", "the code is {}.", "please remember that the code is {}.",
    "keep this in mind: the code is {}.", "note that the code is {}.",
)  # fmt: skip
_CODE_QUESTIONS = (
    "What is the code?", "What was the code?", "Tell me the code.", "Which code did I give you?",
    "Do you remember the code?", "Repeat the code.",
)  # fmt: skip
_FRIEND_NEEDLES = (
    "remember: my friend is {}.", "my friend is called {}.", "my friend is {}.", "I have a friend called {}.",
    "please remember that my friend is {}.", "I met my friend {} today.",
)  # fmt: skip
_FRIEND_QUESTIONS = (
    "Who is my friend?", "What is my friend called?", "What is the name of my friend?",
    "Tell me who my friend is.", "Do you remember my friend?", "Who did I talk about?",
)  # fmt: skip
_FILLERS = (
    "The day is warm.", "We walk to the lake.", "The birds are in the tree.", "It is late now.",
    "A boat is on the water.", "The door is open.", "I drink a cup of tea.", "The road is long.",
)  # fmt: skip
_LEADS = ("", "", "Hi! ", "Hello! ", "Hey, ", "Ling, ", "Okay, ", "Now, ")


def draw(random: Random, level: int) -> Dialogue:
    """Name a code or a friend, then ask for it; codes are held out by their digits.

    level 1   three digits, at most one sentence in between, sometimes two turns
    level 2   six digits, two to four sentences in between
    """
    num_fillers = random.randrange(2) if level == 1 else random.randrange(2, 5)
    if random.random() < 0.6:
        digits = "".join(str(random.randrange(10)) for _ in range(3 if level == 1 else 6))
        spaced = " ".join(digits)
        needle = random.choice(_CODE_NEEDLES).format(spaced)
        question, answer = random.choice(_CODE_QUESTIONS), f"The code is {spaced}."
        return _build(random, num_fillers, needle, question, answer, {"digits": digits}, digits)
    name = random.choice(NAMES)
    needle, question = random.choice(_FRIEND_NEEDLES).format(name), random.choice(_FRIEND_QUESTIONS)
    expected = {"name": name, "others": tuple(other for other in NAMES if other != name)}
    return _build(random, num_fillers, needle, question, f"Your friend is {name}.", expected, "")


def _build(
    random: Random,
    num_fillers: int,
    needle: str,
    question: str,
    answer: str,
    expected: Mapping[str, object],
    split_text: str,
) -> Dialogue:
    text = finish(random, random.choice(_LEADS), needle, "en")
    for _ in range(num_fillers):
        text += " " + random.choice(_FILLERS)
    if random.random() < 0.75:
        return one_turn("memory", f"{text} {question}", answer, expected=expected, split_text=split_text)
    return Dialogue(
        task="memory",
        messages=(
            {"role": "user", "content": text},
            {"role": "assistant", "content": "Okay."},
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ),
        expected=expected,
        split_text=split_text,
    )
