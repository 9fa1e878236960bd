"""Generated dialogues: the split holds, the scorers are exact, and every seed gives what it always gave."""

import hashlib
import json
import math
import re
from collections import defaultdict
from importlib import import_module
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling.data.dialogues import (
    DEFAULT_WEIGHTS,
    LEVELS,
    TASKS,
    Dialogue,
    answer_text,
    canonical,
    generate,
    heldout,
    heldout_set,
    score,
    training_dialogue,
)
from ling.data.dialogues.facts import FACTS
from ling.data.dialogues.tool_calls import TOOLS
from ling.errors import DataError

CLOSED_TASKS = ("identity", "greetings", "facts")
SPLIT_OF_40 = [2, 10, 20, 25, 27, 30]
FIRST_200 = {
    1: "56759a90840d25936fd2477d4d4743e960fc30f062f57622fc920b0b4497c1cb",
    2: "269e918dd435beae1173aab99702ea5bf874402631a7ae768802d450d76203e2",
}
"""sha256 of 200 dialogues by level. A change of any text changes it, and with it what a recipe trains on."""
EVERY_TASK_AND_LEVEL = [(task, level) for task in TASKS for level in LEVELS]


def drawn(task: str, count: int, *, seed: int = 0, level: int = 1) -> list[Dialogue]:
    random = Random(seed)
    return [generate(task, random, level=level) for _ in range(count)]


def written(dialogue: Dialogue) -> str:
    """Everything in a dialogue, as one line of JSON."""
    parts = [dialogue.task, dialogue.messages, dialogue.tools, dialogue.language, dialogue.expected]
    return json.dumps([*parts, dialogue.key], ensure_ascii=False)


def user_text(dialogue: Dialogue) -> str:
    return " ".join(message["content"] for message in dialogue.messages if message["role"] == "user")


# The split


@given(st.sampled_from(EVERY_TASK_AND_LEVEL), st.integers(0, 2**32))
def test_training_never_draws_a_held_out_prompt(task_and_level, seed):
    task, level = task_and_level
    dialogue = training_dialogue(Random(seed), {task: 1.0}, level=level)
    assert dialogue.task == task
    assert not heldout(dialogue.key)


@pytest.mark.parametrize(("task", "level"), EVERY_TASK_AND_LEVEL)
def test_held_out_prompts_are_distinct_and_none_is_in_training(task, level):
    held_out = heldout_set(task, 200, level=level)
    wordings = {dialogue.wording for dialogue in held_out}
    assert len(wordings) == 200
    assert all(heldout(dialogue.key) for dialogue in held_out)
    random = Random(1)
    trained = [training_dialogue(random, {task: 1.0}, level=level) for _ in range(3000)]
    assert not wordings & {dialogue.wording for dialogue in trained}
    assert not {dialogue.key for dialogue in held_out} & {dialogue.key for dialogue in trained}


def test_case_spaces_and_punctuation_do_not_move_a_prompt_to_the_other_side():
    assert canonical("  Who are YOU?! ") == canonical("who are you") == "whoareyou"
    assert canonical("你好，你是谁？") == canonical("你好 你是谁")
    assert canonical("3 + 4 = ?") == "3+4="
    assert canonical("3 - 4") != canonical("3 + 4")


def test_a_call_and_the_dialogue_after_its_result_are_held_out_together():
    """Else training on the assistant's earlier turns would show the answer of a held-out call."""
    sides = defaultdict(set)
    for level in LEVELS:
        for dialogue in drawn("tool_calls", 20_000, level=level):
            sides[canonical(user_text(dialogue))].add(heldout(dialogue.key))
    assert all(len(side) == 1 for side in sides.values())


def test_split_is_pinned():
    keys = [f"key {index}" for index in range(10_000)]
    assert [index for index in range(40) if heldout(keys[index])] == SPLIT_OF_40
    shares = {percent: sum(heldout(key, percent) for key in keys) / 100 for percent in (0, 1, 10, 50, 100)}
    assert shares[0] == 0
    assert shares[100] == 100
    for percent in (1, 10, 50):
        assert abs(shares[percent] - percent) < 5 * math.sqrt(percent * (100 - percent)) / 100, shares
    assert all(heldout(key, 50) for key in keys if heldout(key, 10))


# Coverage: what is held out is another wording of something trained, or other operands


@pytest.mark.parametrize(("task", "least_trained", "least_held_out"), [
    ("identity", 300, 30), ("greetings", 300, 30), ("facts", 150, 10),
])  # fmt: skip
def test_every_meaning_has_many_wordings_on_both_sides(task, least_trained, least_held_out):
    trained, held_out = defaultdict(set), defaultdict(set)
    for dialogue in drawn(task, 30_000):
        side = held_out if heldout(dialogue.key) else trained
        side[dialogue.expected["meaning"]].add(dialogue.wording)
    assert trained.keys() == held_out.keys()
    fewest = min((len(wordings), meaning) for meaning, wordings in trained.items())
    assert fewest[0] >= least_trained, fewest
    fewest = min((len(wordings), meaning) for meaning, wordings in held_out.items())
    assert fewest[0] >= least_held_out, fewest


@pytest.mark.parametrize(("task", "least"), [
    ("identity", 900), ("greetings", 1500), ("facts", 1500), ("arithmetic", 1500), ("comparison", 2500),
    ("stories", 2000), ("tool_calls", 700), ("memory", 2200),
])  # fmt: skip
def test_enough_distinct_prompts_are_held_out(task, least):
    held_out = {dialogue.wording for dialogue in drawn(task, 30_000) if heldout(dialogue.key)}
    assert len(held_out) >= least, len(held_out)


def test_one_wording_has_one_answer_whatever_task_drew_it():
    answers = defaultdict(set)
    for task in (*CLOSED_TASKS, "arithmetic", "comparison", "memory"):
        for dialogue in drawn(task, 20_000):
            answers[dialogue.wording].add(answer_text(dialogue))
    ambiguous = {wording: found for wording, found in answers.items() if len(found) > 1}
    assert not ambiguous


def test_level_1_trains_every_sum_and_holds_out_wordings():
    trained = {answer_text(dialogue) for dialogue in drawn("arithmetic", 20_000) if not heldout(dialogue.key)}
    assert len(trained) == 2 * 231
    assert all(score(dialogue, answer_text(dialogue)) for dialogue in heldout_set("arithmetic", 100))


@pytest.mark.parametrize(("task", "level"), [("arithmetic", 2), ("comparison", 1), ("comparison", 2)])
def test_operands_are_held_out_in_both_orders(task, level):
    sides = defaultdict(set)
    for dialogue in drawn(task, 20_000, level=level):
        text = user_text(dialogue)
        pair = tuple(sorted(set(re.findall(r"\d+", text))))
        if len(pair) == 2:  # no letters, and not twice the same number
            sides[pair].add(heldout(dialogue.key))
    assert len(sides) > 3000
    assert all(len(side) == 1 for side in sides.values())


def test_memory_levels_differ_in_length_and_codes_are_held_out_by_their_digits():
    sides = defaultdict(set)
    for level, num_digits in ((1, 3), (2, 6)):
        for dialogue in drawn("memory", 3000, level=level):
            digits = dialogue.expected.get("digits")
            if digits is not None:
                assert len(digits) == num_digits
                sides[digits].add(heldout(dialogue.key))
    assert all(len(side) == 1 for side in sides.values())


# Scorers


@pytest.mark.parametrize(("task", "level"), EVERY_TASK_AND_LEVEL)
def test_the_true_answer_is_right_and_silence_or_an_echo_is_not(task, level):
    for dialogue in drawn(task, 1000, level=level):
        answer = answer_text(dialogue)
        assert score(dialogue, answer), (user_text(dialogue), answer)
        assert score(dialogue, f"  {answer}\n"), answer
        assert not score(dialogue, ""), user_text(dialogue)
        if task != "arithmetic":  # "0 + 3" ends in its own sum
            assert not score(dialogue, user_text(dialogue)), user_text(dialogue)


@pytest.mark.parametrize("task", CLOSED_TASKS)
def test_the_answer_to_another_meaning_is_wrong(task):
    one_of_each = {dialogue.expected["meaning"]: dialogue for dialogue in drawn(task, 5000)}
    assert len(one_of_each) == {"identity": 16, "greetings": 19, "facts": len(FACTS)}[task]
    for meaning, dialogue in one_of_each.items():
        for other_meaning, other in one_of_each.items():
            right = score(dialogue, answer_text(other))
            assert right == (meaning == other_meaning), (meaning, answer_text(other))


@pytest.mark.parametrize(("task", "level"), EVERY_TASK_AND_LEVEL)
def test_an_answer_of_another_dialogue_is_wrong_unless_the_dialogues_expect_the_same(task, level):
    dialogues = drawn(task, 400, level=level)
    wrong = 0
    for dialogue, other in pairwise(dialogues):
        if task == "stories" or dialogue.expected == other.expected:
            continue
        if answer_text(dialogue) != answer_text(other):
            assert not score(dialogue, answer_text(other)), (user_text(dialogue), answer_text(other))
            wrong += 1
    assert wrong > 150 or task == "stories"


def test_facts_refuse_hedges_other_subjects_and_turned_pairs():
    fact = {dialogue.expected["meaning"]: dialogue for dialogue in drawn("facts", 5000)}
    france = fact["capital France"]
    assert score(france, "paris")
    assert score(france, "It is PARIS, of course.")
    assert not score(france, "Paris or Rome.")
    assert not score(france, "The capital of Japan is Paris.")
    assert not score(france, "Parisian")
    assert score(fact["legs a horse"], "A horse has 4 legs.")
    assert not score(fact["legs a horse"], "A horse has 4 or 5 legs.")
    assert not score(fact["opposite hot"], "The opposite of cold is hot.")
    assert not score(fact["day Monday"], "The day after Tuesday is Monday.")
    assert score(fact["zh capital 法国"], "巴黎")
    assert not score(fact["zh capital 法国"], "法国的首都是北京。")


def test_arithmetic_takes_the_last_number():
    dialogue = next(d for d in drawn("arithmetic", 100) if d.expected["number"] == 7)
    assert score(dialogue, "3 + 4 = 7.")
    assert score(dialogue, "7")
    for wrong in ("7 + 1 = 8.", "-7", "17", "7.5", "seven"):
        assert not score(dialogue, wrong), wrong


def test_a_story_needs_its_hero_its_things_three_sentences_and_an_end():
    dialogue = next(d for d in drawn("stories", 100) if len(d.expected["things"]) == 2)
    story, hero = answer_text(dialogue), dialogue.expected["hero"]
    others = dialogue.expected["others"]
    assert not score(dialogue, story.replace(hero, others[0]))
    assert not score(dialogue, f"{story} {others[0]} came too.")
    assert not score(dialogue, story[:-1])
    assert not score(dialogue, story.replace(dialogue.expected["things"][0], "thing"))
    assert not score(dialogue, story.replace(". ", ", "))
    assert score(dialogue, f'{story} "We are home," said {hero}.')


def test_a_tool_call_is_compared_as_json():
    dialogue = next(d for d in drawn("tool_calls", 100) if d.expected.get("call", {}).get("name") == "timer")
    minutes = dialogue.expected["call"]["arguments"]["minutes"]
    right = f'{{"name": "timer", "arguments": {{"minutes": {minutes}}}}}'
    as_string = right.replace(str(minutes), f'"{minutes}"')
    assert answer_text(dialogue) == f"<tool_call>\n{right}\n</tool_call>"
    assert score(dialogue, f"<tool_call>{right.replace(' ', '')}</tool_call>")
    for wrong in (
        right,
        f"<tool_call>\n{right}\n</tool_call>\n<tool_call>\n{right}\n</tool_call>",
        f"Now <tool_call>\n{right}\n</tool_call>",
        f"<tool_call>\n{right.replace('timer', 'get_time')}\n</tool_call>",
        f"<tool_call>\n{right.replace(str(minutes), f'{minutes}.0')}\n</tool_call>",
        f"<tool_call>\n{as_string}\n</tool_call>",
        f"<tool_call>\n{right[:-1]}\n</tool_call>",
        f'<tool_call>\n{right[:-1]}, "id": 1}}\n</tool_call>',
        "<tool_call>\n" + '{"a":' * 100_000 + "}" * 100_000 + "\n</tool_call>",
    ):
        assert not score(dialogue, wrong), wrong[:200]


def test_memory_takes_the_digits_together_or_apart():
    dialogue = next(d for d in drawn("memory", 100) if "digits" in d.expected)
    digits = dialogue.expected["digits"]
    assert score(dialogue, f"It is {digits}.")
    assert not score(dialogue, f"It is {digits}0.")
    assert not score(dialogue, "It is " + digits[1:] + ".")


@given(st.sampled_from(EVERY_TASK_AND_LEVEL), st.integers(0, 2**32), st.text(max_size=60))
def test_scorers_never_fail_whatever_the_answer(task_and_level, seed, answer):
    task, level = task_and_level
    dialogue = generate(task, Random(seed), level=level)
    assert score(dialogue, answer) in (True, False)
    assert score(dialogue, f"<tool_call>\n{{{answer}}}\n</tool_call>") in (True, False)


# Shape


@pytest.mark.parametrize(("task", "level"), EVERY_TASK_AND_LEVEL)
def test_messages_are_openai_messages_that_end_with_the_answer(task, level):
    for dialogue in drawn(task, 300, level=level):
        assert dialogue.task == task
        assert dialogue.language in ("en", "zh")
        assert (*dialogue.prompt, dialogue.answer) == dialogue.messages
        assert dialogue.prompt[0]["role"] == "user"
        assert dialogue.answer["role"] == "assistant"
        json.dumps([dialogue.messages, dialogue.tools, dialogue.expected])
        names = {tool["function"]["name"] for tool in dialogue.tools}
        for call in dialogue.answer.get("tool_calls", ()):
            assert call["function"]["name"] in names
            assert json.loads(call["function"]["arguments"]) == dialogue.expected["call"]["arguments"]


@pytest.mark.parametrize(("task", "most_prompt_words", "most_answer_words"), [
    ("identity", 18, 12), ("greetings", 18, 8), ("facts", 20, 8), ("arithmetic", 18, 5),
    ("comparison", 20, 6), ("stories", 24, 55), ("tool_calls", 12, 10), ("memory", 28, 6),
])  # fmt: skip
def test_dialogues_are_short(task, most_prompt_words, most_answer_words):
    for dialogue in drawn(task, 5000):
        prompt_words, answer_words = user_text(dialogue).split(), answer_text(dialogue).split()
        assert len(prompt_words) <= most_prompt_words, " ".join(prompt_words)
        assert len(answer_words) <= most_answer_words, " ".join(answer_words)
        assert len(user_text(dialogue)) <= 150


def test_stories_are_38_words_or_more_on_average():
    lengths = [len(answer_text(dialogue).split()) for dialogue in drawn("stories", 2000)]
    assert sum(lengths) / len(lengths) > 38, sum(lengths) / len(lengths)


def test_tool_schemas_stay_small_and_level_1_offers_one():
    assert max(len(json.dumps(tool.schema)) for tool in TOOLS) < 125
    for dialogue in drawn("tool_calls", 500):
        assert len(dialogue.tools) == (1 if "call" in dialogue.expected else 0)
    for dialogue in drawn("tool_calls", 500, level=2):
        assert len({tool["function"]["name"] for tool in dialogue.tools}) == 2


# Determinism, weights, errors


@pytest.mark.parametrize("level", LEVELS)
def test_the_first_200_dialogues_of_a_seed_are_pinned(level):
    random = Random(2025)
    lines = [written(training_dialogue(random, level=level)) for _ in range(200)]
    found = hashlib.sha256("\n".join(lines).encode("utf-8")).hexdigest()
    assert found == FIRST_200[level], f"level {level} now gives {found}"


def test_a_held_out_set_depends_on_its_seed_alone():
    first = [written(dialogue) for dialogue in heldout_set("facts", 50, seed=3)]
    assert first == [written(dialogue) for dialogue in heldout_set("facts", 50, seed=3)]
    assert first != [written(dialogue) for dialogue in heldout_set("facts", 50, seed=4)]


def test_tasks_are_drawn_by_weight_in_whatever_order_the_weights_are_written():
    random = Random(0)
    counts = dict.fromkeys(TASKS, 0)
    for _ in range(20_000):
        counts[training_dialogue(random).task] += 1
    assert sum(DEFAULT_WEIGHTS.values()) == pytest.approx(1)
    for task, weight in DEFAULT_WEIGHTS.items():
        assert abs(counts[task] / 20_000 - weight) < 0.015, (task, counts[task])
    turned = dict(reversed(DEFAULT_WEIGHTS.items()))
    in_order = [written(training_dialogue(Random(seed), turned)) for seed in range(50)]
    assert in_order == [written(training_dialogue(Random(seed))) for seed in range(50)]


def test_mistakes_are_named():
    random = Random(0)
    with pytest.raises(DataError, match="unknown dialogue task fact; did you mean facts"):
        generate("fact", random)
    with pytest.raises(DataError, match="unknown dialogue task zzz; the tasks are identity, "):
        training_dialogue(random, {"zzz": 1.0})
    with pytest.raises(DataError, match="level must be 1 or 2, got 3"):
        generate("facts", random, level=3)
    with pytest.raises(DataError, match="task facts must be finite and at least 0, got -1"):
        training_dialogue(random, {"facts": -1.0, "identity": 2.0})
    with pytest.raises(DataError, match="positive sum"):
        training_dialogue(random, {})
    with pytest.raises(DataError, match="percent, got 101"):
        heldout("key", 101)


def test_a_held_out_set_that_cannot_be_found_says_how_many_there_are(monkeypatch):
    monkeypatch.setattr(import_module("ling.data.dialogues.generate"), "_PATIENCE", 300)
    with pytest.raises(DataError, match=r"task tool_calls at level 1 has about \d{3,} distinct held-out"):
        heldout_set("tool_calls", 1_000_000)
