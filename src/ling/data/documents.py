"""Documents: token ids, and which of them are to be learnt."""

from collections.abc import Sequence
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


def dialogue_document(dialogues: Sequence[Dialogue], tokenizer: Tokenizer) -> Document:
    """Render dialogues that follow each other as one conversation; answers and their end are learnt.

    dialogues  at least one; several must have the same tools
    """
    messages = [message for dialogue in dialogues for message in dialogue.messages]
    tokens, learnt = encode_chat(tokenizer, messages, tools=dialogues[0].tools)
    return Document(tokens, learnt)
