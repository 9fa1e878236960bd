"""Questions about the facts of `fact_table`, each in very many wordings, with one answer per fact."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from ling.data.dialogues.fact_table import CATEGORIES, Category
from ling.data.dialogues.phrasing import ask, capitalised
from ling.data.dialogues.types import Dialogue, one_turn


@dataclass(frozen=True, slots=True)
class Fact:
    category: Category
    subject: str
    answer: str
    expected: Mapping[str, object]


def _facts_of(category: Category) -> list[Fact]:
    facts = []
    for subject, value in category.values.items():
        forms = value.split("|")
        named = {*category.values, *category.distractors}
        named.update(form for other in category.values.values() for form in other.split("|"))
        expected = {
            "meaning": f"{category.name} {subject}",
            "subject": subject,
            "answers": tuple(forms),
            "others": tuple(sorted(named - {subject, *forms})),
        }
        answer = capitalised(category.answer.format(x=subject, y=forms[0]))
        facts.append(Fact(category, subject, answer, expected))
    return facts


FACTS = tuple(fact for category in CATEGORIES for fact in _facts_of(category))


def draw(random: Random, level: int) -> Dialogue:
    """Ask for one of `FACTS`, each as often as any other. There is one level."""
    fact = random.choice(FACTS)
    core = random.choice(fact.category.questions).format(x=fact.subject)
    language = fact.category.language
    return one_turn("facts", ask(random, core, language), fact.answer, expected=fact.expected, language=language)
