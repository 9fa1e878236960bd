"""Short stories about the hero and the things that the prompt names.

A plot is four sentences; each has a few wordings, and all agree on who does what, where, and with what.
The hero and one or two of (object, animal, place) are in the prompt; what is not named is drawn.
"""

from random import Random

from ling.data.dialogues.phrasing import NAMES, ask
from ling.data.dialogues.types import Dialogue, one_turn

_GIRLS = frozenset({"Lily", "Anna", "Mia", "Lucy", "Emma", "Rose"})
_THINGS = {
    "object": ("ball", "kite", "boat", "hat", "drum", "box", "key", "lamp", "book", "bell", "cup", "map"),
    "animal": ("dog", "cat", "bird", "duck", "frog", "rabbit", "fox", "bear", "mouse", "pony"),
    "place": ("park", "forest", "garden", "farm", "lake", "hill", "market", "beach"),
}
_NAMED = (
    ("object",), ("animal",), ("place",),
    ("object", "animal"), ("object", "place"), ("animal", "place"),
)  # fmt: skip
_PROMPTS = (
    "tell me a story about {}.", "write a story about {}.", "tell me a short story about {}.",
    "can you tell me a story about {}?", "please write a short story about {}.", "a story about {}, please.",
    "I want a story about {}.", "make up a story about {}.", "I would like to hear a story about {}.",
    "write me a little story with {}.", "can you write a story with {}?", "tell the story of {}.",
)  # fmt: skip

_AT = {"farm": "on", "hill": "on", "beach": "on", "lake": "at", "market": "at"}
"""Prepositions of places; of all others it is `in`."""

_PLOTS = (
    (   # a gift
        ("One {day} day, {hero} went to the {place} with a {object}.",
         "{hero} had a new {object} and took it to the {place} one {day} day."),
        ("There {he} met a {animal} that was all alone and very {sad}.",
         "A little {animal} sat there and was very {sad}."),
        ("{hero} gave the {object} to the {animal}, and they played until the evening.",
         "{hero} showed the {object} to the {animal}, and soon they played together."),
        ("From then on they were the best of friends.",
         "The {animal} was happy, and {hero} was happy too."),
    ),
    (   # lost and found
        ("One {day} day, {hero} lost {his} {object} {at} the {place}.",
         "{hero} was {at} the {place} one {day} day and could not find {his} {object}."),
        ("{He} looked and looked, but it was not there.",
         "{He} looked here and there and was very {sad}."),
        ("Then a kind {animal} came and gave the {object} back to {him}.",
         "Then a clever {animal} saw the {object} and called {him}."),
        ("{hero} thanked the {animal}, and they went home together.",
         "\"Thank you!\" said {hero}, and the {animal} was very glad."),
    ),
    (   # help
        ("One {day} day, {hero} saw a {animal} {at} the {place}.",
         "A small {animal} lived {at} the {place}, and one {day} day {hero} came to see it."),
        ("The {animal} was {sad} and did not know the way home.",
         "The {animal} had lost its friends and was very {sad}."),
        ("{hero} gave it {his} {object} to play with and stayed with it.",
         "{hero} put down {his} {object} and helped it all day."),
        ("At last they found the way, and {hero} was proud.",
         "Soon the {animal} was safe, and they all sang a song."),
    ),
)  # fmt: skip
_DAYS = ("sunny", "warm", "cold", "windy", "fine")
_MOODS = ("sad", "cold", "tired", "hungry")


def draw(random: Random, level: int) -> Dialogue:
    """Ask for a story; held out by the hero and the things named. There is one level."""
    hero = random.choice(NAMES)
    cast = {kind: random.choice(things) for kind, things in _THINGS.items()}
    things = tuple(cast[kind] for kind in random.choice(_NAMED))
    core = random.choice(_PROMPTS).format(_subject(hero, things))
    return one_turn(
        "stories",
        ask(random, core, plain=0.8),
        _tell(random, hero, cast),
        expected={
            "hero": hero,
            "things": things,
            "others": tuple(name for name in NAMES if name != hero),
        },
        split_text=" ".join((hero, *things)),
    )


def _subject(hero: str, things: tuple[str, ...]) -> str:
    """Write `Tom, a dog and a cup`, or `Tom and a dog at the lake` if a place is named.

    The place stands as it will in the story: copying `at the lake` is learnt long before "and a lake" is.
    """
    *first, last = (hero, *(f"a {thing}" for thing in things if thing not in _THINGS["place"]))
    subject = f"{', '.join(first)} and {last}" if first else last
    place = things[-1]
    return f"{subject} {_at(place)} the {place}" if place in _THINGS["place"] else subject


def _at(place: str) -> str:
    return _AT.get(place, "in")


def _tell(random: Random, hero: str, cast: dict[str, str]) -> str:
    he, his, him = ("she", "her", "her") if hero in _GIRLS else ("he", "his", "him")
    words = {"hero": hero, "he": he, "He": he.capitalize(), "his": his, "him": him, **cast}
    words |= {"at": _at(cast["place"]), "day": random.choice(_DAYS), "sad": random.choice(_MOODS)}
    return " ".join(random.choice(wordings).format_map(words) for wordings in random.choice(_PLOTS))
