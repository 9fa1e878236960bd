"""Judge an answer to a generated dialogue: exact, the same every time, right or wrong.

Words are compared without case and punctuation, and always whole. Nothing is guessed: an answer that hedges
("Paris or Rome") or answers another question is wrong. The scores serve evaluation and, later, as rewards.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from ling.data.dialogues.types import Dialogue

_FEWEST_STORY_WORDS = 25
"""More than any prompt has, so that the prompt again is not a story."""
_MOST_WORDS_AROUND = 5
"""Around what is to be remembered: fewer than in any prompt, so that the prompt again is not an answer."""

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_TOOL_CALL = re.compile(r"<tool_call>\s*(\{.*\})\s*</tool_call>", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?]+[\"']?(?=\s|$)")


def score(dialogue: Dialogue, answer: str) -> bool:
    """Tell whether `answer`, the text that a model wrote, is right for this dialogue."""
    return _SCORERS[dialogue.task](dialogue.expected, answer, dialogue.language)


def answer_text(dialogue: Dialogue) -> str:
    """Write the dialogue's own answer as a model writes it: its content, then its tool calls.

    return  calls are in the Ling format (spec: tokenizer_chat.md 4)
    """
    parts = [dialogue.answer["content"]] if dialogue.answer.get("content") else []
    for call in dialogue.answer.get("tool_calls", ()):
        function = call["function"]
        body = f'{{"name": "{function["name"]}", "arguments": {function["arguments"]}}}'
        parts.append(f"<tool_call>\n{body}\n</tool_call>")
    return "\n".join(parts)


def _score_identity(expected: Mapping[str, Any], answer: str, language: str) -> bool:
    text = _plain(answer, language)
    return all(_position(text, phrase, language) >= 0 for phrase in expected["required"])


def _score_greeting(expected: Mapping[str, Any], answer: str, language: str) -> bool:
    return _plain(answer, language) in {_plain(reply, language) for reply in expected["replies"]}


def _score_fact(expected: Mapping[str, Any], answer: str, language: str) -> bool:
    """Want the value and nothing else of its kind.

    The value is said after the subject: "hot is cold" does not answer what "cold is hot" does.
    """
    text = _plain(answer, language)
    value = max(_position(text, form, language) for form in expected["answers"])
    subject = _position(text, expected["subject"], language)
    return value > subject and _none_of(expected["others"], text, language)


def _score_arithmetic(expected: Mapping[str, Any], answer: str, language: str) -> bool:
    numbers = _NUMBER.findall(answer)
    return numbers[-1:] == [str(expected["number"])]


def _score_comparison(expected: Mapping[str, Any], answer: str, language: str) -> bool:
    text = _plain(answer, language)
    others = {*expected["others"], *_NUMBER.findall(text)} - {expected["value"]}
    return _position(text, expected["value"], language) >= 0 and _none_of(others, text, language)


def _score_story(expected: Mapping[str, Any], answer: str, language: str) -> bool:
    text = _plain(answer, language)
    ends = [match.end() for match in _SENTENCE_END.finditer(answer.rstrip())]
    if len(ends) < 3 or ends[-1] != len(answer.rstrip()) or len(text.split()) < _FEWEST_STORY_WORDS:
        return False
    wanted = (expected["hero"], *expected["things"])
    named = all(_position(text, word, language) >= 0 for word in wanted)
    return named and _none_of(expected["others"], text, language)


def _score_tool_call(expected: Mapping[str, Any], answer: str, language: str) -> bool:
    if "call" not in expected:
        return _score_statement(expected, answer, language)
    match = _TOOL_CALL.fullmatch(answer.strip())
    try:
        # As text, because in Python 1 == 1.0 == True, and a tool may not think so.
        call = json.dumps(json.loads(match[1]), sort_keys=True) if match else None
    except (ValueError, RecursionError):
        return False
    return call == json.dumps(expected["call"], sort_keys=True)


def _score_statement(expected: Mapping[str, Any], answer: str, language: str) -> bool:
    text = _plain(answer, language)
    right_numbers = {number for phrase in expected["required"] for number in re.findall(r"\d+", phrase)}
    return (
        all(_position(text, phrase, language) >= 0 for phrase in expected["required"])
        and set(re.findall(r"\d+", answer)) <= right_numbers
        and _none_of(expected["others"], text, language)
    )


def _score_memory(expected: Mapping[str, Any], answer: str, language: str) -> bool:
    text = _plain(answer, language)
    if "digits" in expected:
        right = re.sub(r"\D", "", answer) == expected["digits"]
        num_remembered = sum(word.isdigit() for word in text.split())
    else:
        num_remembered = text.split().count(expected["name"].casefold())
        right = num_remembered > 0 and _none_of(expected["others"], text, language)
    return right and len(text.split()) - num_remembered <= _MOST_WORDS_AROUND


_SCORERS: dict[str, Callable[[Mapping[str, Any], str, str], bool]] = {
    "identity": _score_identity,
    "greetings": _score_greeting,
    "facts": _score_fact,
    "arithmetic": _score_arithmetic,
    "comparison": _score_comparison,
    "stories": _score_story,
    "tool_calls": _score_tool_call,
    "memory": _score_memory,
}


def _plain(text: str, language: str) -> str:
    """Keep letters and digits, in lower case; English words get one space on each side, Chinese has none."""
    words = re.findall(r"\w+", re.sub("['’]", "", text.casefold()))
    return f" {' '.join(words)} " if language == "en" else "".join(words)


def _position(text: str, phrase: str, language: str) -> int:
    """Return where the phrase is last found, as whole words where the language has spaces; -1 if nowhere.

    text  from `_plain`
    """
    return text.rfind(_plain_phrase(phrase, language))


_plain_phrase = lru_cache(maxsize=4096)(_plain)  # the same few phrases are looked for again and again


def _none_of(phrases: Iterable[str], text: str, language: str) -> bool:
    return all(_position(text, phrase, language) < 0 for phrase in phrases)
