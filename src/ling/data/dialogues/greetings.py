"""Small talk: hello, good morning, thanks, goodbye. Each meaning has one reply that we train on."""

from dataclasses import dataclass
from random import Random

from ling.data.dialogues.phrasing import CHINESE_NAMES, NAMES, finish, weighted
from ling.data.dialogues.types import Dialogue, one_turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    name: str
    greetings: tuple[str, ...]
    """Those that are questions end in their question mark, the others in nothing."""
    replies: tuple[str, ...]
    """All are right; the first is the one we train on. None serves two meanings, and none only echoes."""


ENGLISH = (
    Meaning(
        name="hello",
        greetings=("hello", "hi", "hey", "hi there", "hello there", "hey there", "greetings", "good day"),
        replies=("Hello! How can I help you today?", "Hello! How can I help you?"),
    ),
    Meaning(
        name="morning",
        greetings=(
            "good morning", "a good morning", "a very good morning", "good morning to you", "morning",
            "a lovely good morning", "good morning again",
        ),
        replies=("Good morning! How can I help you?", "Good morning! How can I help you today?"),
    ),
    Meaning(
        name="afternoon",
        greetings=(
            "good afternoon", "a good afternoon", "a very good afternoon", "good afternoon to you",
            "afternoon", "a lovely good afternoon", "good afternoon again",
        ),
        replies=("Good afternoon! How can I help you?", "Good afternoon! How can I help you today?"),
    ),
    Meaning(
        name="evening",
        greetings=(
            "good evening", "a good evening", "a very good evening", "good evening to you", "evening",
            "a lovely good evening", "good evening again",
        ),
        replies=("Good evening! How can I help you?", "Good evening! How can I help you today?"),
    ),
    Meaning(
        name="night",
        greetings=(
            "good night", "a good night", "good night to you", "have a good night", "sleep well",
            "sweet dreams", "I am going to bed", "it is time to sleep",
        ),
        replies=("Good night! Sleep well.",),
    ),
    Meaning(
        name="wellbeing",
        greetings=(
            "how are you?", "how are you doing?", "how are you today?", "how is it going?",
            "how do you feel?", "how do you do?", "how are things?", "are you well?", "are you okay?",
            "how is your day?",
        ),
        replies=("I am doing well, thank you.", "I am well, thank you.", "I'm doing well, thank you."),
    ),
    Meaning(
        name="thanks",
        greetings=(
            "thank you", "thanks", "thanks a lot", "thank you so much", "many thanks", "thank you very much",
            "thanks for your help", "thank you for your help", "thank you for helping me",
        ),
        replies=("You are welcome!", "You're welcome!"),
    ),
    Meaning(
        name="goodbye",
        greetings=(
            "goodbye", "bye", "bye bye", "see you later", "see you", "see you tomorrow", "I have to go",
            "I must go now", "talk to you later", "see you soon",
        ),
        replies=("Goodbye! Have a nice day.", "Goodbye! Have a good day."),
    ),
    Meaning(
        name="sorry",
        greetings=(
            "sorry", "I am sorry", "I am so sorry", "my apologies", "please forgive me", "sorry about that",
            "I am very sorry", "I want to say sorry",
        ),
        replies=("That is all right.", "That's all right."),
    ),
    Meaning(
        name="meeting",
        greetings=(
            "nice to meet you", "pleased to meet you", "glad to meet you", "good to meet you",
            "it is nice to meet you", "happy to meet you", "I am glad to meet you",
        ),
        replies=("Nice to meet you too!", "Pleased to meet you too!"),
    ),
    Meaning(
        name="praise",
        greetings=(
            "well done", "good job", "great job", "you are great", "you are very smart", "nice work",
            "you did well", "that was great", "you are the best",
        ),
        replies=("I am glad you like it!", "I'm glad you like it!"),
    ),
)  # fmt: skip

CHINESE = (
    Meaning(
        name="hello",
        greetings=("你好", "您好", "嗨", "哈喽", "你好呀", "您好呀"),
        replies=("你好！有什么可以帮你？", "你好！有什么可以帮您？"),
    ),
    Meaning(
        name="morning",
        greetings=("早上好", "早安", "早上好呀", "早啊", "你早", "上午好"),
        replies=("早上好！有什么可以帮你？", "早上好！有什么可以帮您？"),
    ),
    Meaning(
        name="night",
        greetings=("晚安", "晚安啦", "我去睡觉了", "我要睡了", "该睡觉了", "祝你晚安"),
        replies=("晚安！做个好梦。",),
    ),
    Meaning(
        name="wellbeing",
        greetings=("你好吗？", "你怎么样？", "最近好吗？", "你今天好吗？", "你还好吗？", "最近怎么样？"),
        replies=("我很好，谢谢！",),
    ),
    Meaning(
        name="thanks",
        greetings=("谢谢", "谢谢你", "多谢", "非常感谢", "太感谢了", "谢谢你的帮助"),
        replies=("不客气！",),
    ),
    Meaning(
        name="goodbye",
        greetings=("再见", "拜拜", "回头见", "明天见", "我走了", "下次见"),
        replies=("再见！祝你愉快。",),
    ),
    Meaning(
        name="sorry",
        greetings=("对不起", "抱歉", "真对不起", "非常抱歉", "请原谅我", "我很抱歉"),
        replies=("没关系。",),
    ),
    Meaning(
        name="meeting",
        greetings=("很高兴认识你", "认识你很高兴", "见到你真高兴", "很高兴见到你", "能认识你真好", "幸会"),
        replies=("我也很高兴认识你！",),
    ),
)

_LEADS = {
    "en": ("", "", "", "Oh, ", "Well, ", "Hey, ", "Okay, ", "Hi, ", "Ah, ", "So, ", "Hello, "),
    "zh": ("", "", "", "嗨，", "哈，", "啊，", "喂，", "哎，"),
}
_ADDRESSES = {
    "en": (
        "", "", "", ", Ling", ", my friend", ", dear Ling", ", dear friend", ", my assistant", ", my dear",
        ", little assistant", ", Ling my friend", ", kind assistant",
    ),
    "zh": ("", "", "，Ling", "，朋友", "，我的朋友", "，小助手", "，亲爱的朋友", "，亲爱的Ling"),
}  # fmt: skip
_NAMED_TAILS = {
    "en": ("I am {}.", "This is {}.", "It is {} here.", "My name is {}."),
    "zh": ("我是{}。", "我叫{}。"),
}
_TAILS = {
    "en": (
        "The sun is shining.", "It is a nice day today.", "It is raining here.", "I had a nice day.",
        "I am happy today.", "I am a bit tired.", "It is cold today.", "It is warm today.",
    ),
    "zh": ("今天天气很好。", "外面下雨了。", "我今天很开心。", "我有点累。", "今天有点冷。"),
}  # fmt: skip


def draw(random: Random, level: int) -> Dialogue:
    """Greet Ling in one of many ways. There is one level."""
    language, meanings = weighted(random, ("en", ENGLISH), ("zh", CHINESE))
    meaning = random.choice(meanings)
    return one_turn(
        "greetings",
        _greet(random, random.choice(meaning.greetings), language),
        meaning.replies[0],
        expected={"meaning": f"{language} {meaning.name}", "replies": meaning.replies},
        language=language,
    )


def _greet(random: Random, core: str, language: str) -> str:
    mark = core[-1] if core[-1] in "?？" else random.choice("!." if language == "en" else "！。")
    text = core.rstrip("?？") + random.choice(_ADDRESSES[language])
    if random.random() < 0.4:
        text += mark + (" " if language == "en" else "") + _tail(random, language)
    elif random.random() < 0.7:
        text += mark
    return finish(random, random.choice(_LEADS[language]), text, language)


def _tail(random: Random, language: str) -> str:
    if random.random() < 0.5:
        name = random.choice(NAMES if language == "en" else CHINESE_NAMES)
        return random.choice(_NAMED_TAILS[language]).format(name)
    return random.choice(_TAILS[language])
