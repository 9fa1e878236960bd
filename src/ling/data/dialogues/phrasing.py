"""Many ways to say the same thing.

A question is a *core* ("what is the capital of France?") inside a frame: a lead ("Excuse me, "), a tail
("I forgot."), an ending and a case. Frames do not change the meaning, so every core times every frame is
another wording of it. Cores are written in lower case except for names, and end in `?` or `.`.
"""

from random import Random
from typing import TypeVar

Choice = TypeVar("Choice")

NAMES = ("Tom", "Lily", "Ben", "Anna", "Max", "Mia", "Sam", "Lucy", "Jack", "Emma", "Leo", "Rose")
"""First names in English prompts and stories."""

CHINESE_NAMES = ("小明", "小红", "小刚", "小丽", "小华", "小美", "小军", "小芳")

CHINESE_FRACTION = 0.2
"""Of the identity and greeting dialogues. Facts are drawn evenly, whatever their language."""

_LEADS = {
    "en": (
        "Hey, ", "Hi! ", "Hello! ", "Excuse me, ", "Quick question: ", "I have a question: ", "I wonder, ",
        "So, ", "Okay, ", "Question: ", "By the way, ", "Hey Ling, ", "Ling, ", "Can you help me? ", "Now, ",
        "One more question: ", "Sorry, ", "Well, ", "Hi there, ", "Please help me: ",
    ),
    "zh": (
        "请问，", "你好，", "您好，", "问一下，", "我有个问题：", "嗨，", "那么，", "Ling，", "打扰一下，",
        "问题：", "对了，", "不好意思，",
    ),
}  # fmt: skip

_TAILS = {
    "en": (
        "Thanks!", "Thank you.", "Please tell me.", "I want to know.", "I forgot.", "Please answer.",
        "Answer in one sentence.", "My friend wants to know.", "I am not sure.", "It is for school.",
        "I am curious.", "Keep it short.", "Please help me.", "I would like to know.",
    ),
    "zh": (
        "谢谢！", "谢谢你。", "请告诉我。", "我想知道。", "我忘了。", "请回答。", "请用一句话回答。",
        "我很好奇。", "我不太清楚。", "请帮帮我。",
    ),
}  # fmt: skip


def ask(random: Random, core: str, language: str = "en", *, plain: float = 0.45) -> str:
    """Put a core into a random frame.

    core    ends in its own punctuation mark
    plain   0 to 1, the chance of no lead, and, apart from it, of no tail
    """
    lead = "" if random.random() < plain else random.choice(_LEADS[language])
    tail = "" if random.random() < plain else random.choice(_TAILS[language])
    if tail:
        core = f"{core} {tail}" if language == "en" else core + tail
    elif random.random() < 0.25:
        core = core[:-1]
    return finish(random, lead, core, language)


def finish(random: Random, lead: str, core: str, language: str) -> str:
    """Join lead and core with the right capital letter; now and then write all in lower case."""
    if language != "en":
        return lead + core
    text = lead + (core if lead.endswith((", ", ": ")) else capitalised(core))
    return text.lower() if random.random() < 0.15 else text


def capitalised(text: str) -> str:
    """Make the first letter a capital and leave the rest, unlike `str.capitalize`."""
    return text[:1].upper() + text[1:]


def weighted(random: Random, english: Choice, chinese: Choice) -> Choice:
    """Return the Chinese one with chance `CHINESE_FRACTION`, else the English one."""
    return chinese if random.random() < CHINESE_FRACTION else english
