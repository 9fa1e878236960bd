"""The facts themselves: a closed set, small enough for a tiny model to learn by heart in minutes."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    name: str
    questions: tuple[str, ...]
    """Cores with `{x}` for the subject."""
    answer: str
    """With `{x}` for the subject and `{y}` for the value."""
    values: Mapping[str, str]
    """Subject to value. A value may be `four|4`: the first form is trained on, all are accepted."""
    distractors: tuple[str, ...] = ()
    """More values that an answer may wrongly name. Right ones may be among them."""
    language: str = "en"


_NUMBERS = (
    "no", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "twenty", *map(str, range(21)), "30", "100",
)  # fmt: skip

CATEGORIES = (
    Category(
        name="capital",
        questions=(
            "what is the capital of {x}?", "what's the capital of {x}?", "which city is the capital of {x}?",
            "tell me the capital of {x}.", "name the capital of {x}.", "do you know the capital of {x}?",
            "what is the capital city of {x}?", "the capital of {x}?", "{x} has which capital?",
            "what city is the capital of {x}?", "what is {x}'s capital?",
            "please give me the capital of {x}.",
        ),
        answer="The capital of {x} is {y}.",
        values={
            "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo",
            "China": "Beijing", "England": "London", "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens",
            "Portugal": "Lisbon", "Austria": "Vienna", "Poland": "Warsaw", "Norway": "Oslo", "Cuba": "Havana",
            "Sweden": "Stockholm", "Ireland": "Dublin", "Canada": "Ottawa", "India": "New Delhi",
            "Peru": "Lima", "Kenya": "Nairobi", "Thailand": "Bangkok", "Finland": "Helsinki",
            "Iran": "Tehran",
        },
        distractors=("Sydney", "New York", "Shanghai", "Brussels", "Madras"),
    ),
    Category(
        name="color",
        questions=(
            "what color is {x}?", "what is the color of {x}?", "which color does {x} have?",
            "tell me the color of {x}.", "what color does {x} have?", "which color is {x}?",
            "name the color of {x}.", "{x} has which color?", "do you know the color of {x}?",
        ),
        answer="{x} is {y}.",
        values={
            "the sky": "blue", "grass": "green", "snow": "white", "a banana": "yellow", "a tomato": "red",
        },
        distractors=("black", "brown", "pink", "orange", "grey", "gray", "purple"),
    ),
    Category(
        name="legs",
        questions=(
            "how many legs does {x} have?", "how many legs has {x}?", "{x} has how many legs?",
            "tell me how many legs {x} has.", "do you know how many legs {x} has?",
            "what number of legs does {x} have?", "count the legs of {x}.", "how many legs are on {x}?",
        ),
        answer="{x} has {y} legs.",
        values={"a horse": "four|4", "a bird": "two|2", "an ant": "six|6", "a spider": "eight|8"},
        distractors=_NUMBERS,
    ),
    Category(
        name="opposite",
        questions=(
            "what is the opposite of {x}?", "what's the opposite of {x}?", "tell me the opposite of {x}.",
            "name the opposite of {x}.", "which word is the opposite of {x}?", "the opposite of {x}?",
            "do you know the opposite of {x}?", "what word means the opposite of {x}?",
            "give me the opposite of {x}.", "what is {x} the opposite of?",
        ),
        answer="The opposite of {x} is {y}.",
        values={"hot": "cold", "cold": "hot", "big": "small", "small": "big", "fast": "slow", "slow": "fast"},
        distractors=("warm", "large", "little", "quick", "happy", "sad"),
    ),
    Category(
        name="day",
        questions=(
            "what day comes after {x}?", "which day comes after {x}?", "what is the day after {x}?",
            "which day follows {x}?", "what day follows {x}?", "tell me the day after {x}.",
            "name the day after {x}.", "today is {x}. What day is tomorrow?", "the day after {x}?",
            "if today is {x}, what is tomorrow?",
        ),
        answer="The day after {x} is {y}.",
        values={
            "Monday": "Tuesday", "Tuesday": "Wednesday", "Wednesday": "Thursday", "Thursday": "Friday",
            "Friday": "Saturday", "Saturday": "Sunday", "Sunday": "Monday",
        },
    ),
    Category(
        name="sound",
        questions=(
            "what does {x} say?", "what sound does {x} make?", "which sound does {x} make?",
            "tell me what {x} says.", "what noise does {x} make?", "do you know what {x} says?",
            "how does {x} sound?", "what is the sound of {x}?", "name the sound of {x}.",
        ),
        answer="{x} says {y}.",
        values={"a cow": "moo", "a dog": "woof", "a cat": "meow", "a duck": "quack"},
        distractors=("baa", "oink", "neigh", "roar"),
    ),
    Category(
        name="week",
        questions=(
            "how many days are in {x}?", "how many days does {x} have?", "{x} has how many days?",
            "tell me how many days {x} has.", "how many days are there in {x}?", "how many days make {x}?",
            "do you know how many days are in {x}?", "what number of days does {x} have?",
        ),
        answer="{x} has {y} days.",
        values={"a week": "seven|7"},
        distractors=_NUMBERS,
    ),
    Category(
        name="ice",
        questions=(
            "what is {x} called?", "what do we call {x}?", "what is the name of {x}?", "how do we call {x}?",
            "what is the word for {x}?", "which word means {x}?", "tell me the word for {x}.",
            "do you know what {x} is called?",
        ),
        answer="{x} is called {y}.",
        values={"frozen water": "ice"},
        distractors=("steam", "rain", "snow", "fog"),
    ),
    Category(
        name="planet",
        questions=(
            "which planet do {x} live on?", "what planet do {x} live on?", "on which planet do {x} live?",
            "tell me which planet {x} live on.", "what is the planet that {x} live on?",
            "name the planet that {x} live on.", "do you know which planet {x} live on?",
        ),
        answer="{x} live on the planet {y}.",
        values={"people": "Earth"},
        distractors=("Mars", "Venus", "Jupiter", "Saturn", "the moon"),
    ),
    Category(
        name="gas",
        questions=(
            "what gas do {x} need?", "which gas do {x} need?", "what gas do {x} breathe?",
            "which gas do {x} breathe?", "tell me which gas {x} breathe.", "what do {x} need to breathe?",
            "do you know which gas {x} need?", "name the gas that {x} breathe.",
        ),
        answer="{x} need {y} to breathe.",
        values={"animals": "oxygen"},
        distractors=("nitrogen", "helium", "carbon", "water"),
    ),
    Category(
        name="zh capital",
        language="zh",
        questions=(
            "{x}的首都是哪里？", "{x}的首都是什么？", "{x}的首都在哪里？", "哪座城市是{x}的首都？",
            "{x}的首都是哪座城市？", "告诉我{x}的首都。", "{x}首都是哪里？", "你知道{x}的首都吗？",
            "{x}的首都叫什么？",
        ),
        answer="{x}的首都是{y}。",
        values={
            "中国": "北京", "法国": "巴黎", "日本": "东京", "英国": "伦敦", "德国": "柏林",
            "俄罗斯": "莫斯科",
        },
        distractors=("上海", "罗马", "纽约", "大阪"),
    ),
    Category(
        name="zh color",
        language="zh",
        questions=(
            "{x}是什么颜色？", "{x}是什么颜色的？", "{x}的颜色是什么？", "{x}有什么颜色？",
            "告诉我{x}的颜色。", "你知道{x}的颜色吗？", "{x}是哪种颜色？", "{x}什么颜色？",
        ),
        answer="{x}是{y}色的。",
        values={"天空": "蓝", "草": "绿", "雪": "白"},
        distractors=("红", "黄", "黑"),
    ),
    Category(
        name="zh opposite",
        language="zh",
        questions=(
            "{x}的反义词是什么？", "{x}的反义词？", "什么是{x}的反义词？", "告诉我{x}的反义词。",
            "你知道{x}的反义词吗？", "{x}的相反是什么？", "哪个字是{x}的反义词？", "{x}反过来是什么？",
        ),
        answer="{x}的反义词是{y}。",
        values={"大": "小", "小": "大"},
        distractors=("热", "冷", "长"),
    ),
)  # fmt: skip
