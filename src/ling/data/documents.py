"""Documents: token ids, and which of them are to be learnt."""

from dataclasses import dataclass

from ling.data.dialogues import Dialogue
from ling.tokenizer import Tokenizer, encode_chat


@dataclass(frozen=True, slots=True)
class Document:
    """One training example; it never sees its neighbours in a pack.

    tokens  ids
    learnt  per token, whether the model is asked to predict it
    """

    tokens: list[int]
    learnt: list[bool]


def dialogue_document(dialogue: Dialogue, tokenizer: Tokenizer) -> Document:
    """Render a dialogue in the chat format; answers and their end are learnt."""
    tokens, learnt = encode_chat(tokenizer, dialogue.messages, tools=dialogue.tools)
    return Document(tokens, learnt)
