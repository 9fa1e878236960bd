"""The special tokens of Ling 2.0: their spellings, their order, and which of them plays which part.

A special token is one id that text never gives by accident: it brackets a role, ends a turn or ends a
document. Spellings are facts of the format, ids are not: each vocabulary numbers them anew.
"""

from dataclasses import dataclass

TEXT_START = "<|startoftext|>"
"""Named as `bos_token` and never inserted: no Ling prompt starts with it."""
DOCUMENT_END = "<|endoftext|>"
"""Ends a document in pre-training; also the padding of every configuration."""
CLS = "[CLS]"
"""Legacy of an older model family; unused."""
GMASK = "[gMASK]"
"""Legacy of an older model family; unused."""
TURN_END = "<|role_end|>"
"""Ends every turn of a chat."""
ROLE_OPEN = "<role>"
ROLE_CLOSE = "</role>"

SPECIAL_TOKENS = (TEXT_START, DOCUMENT_END, CLS, GMASK, TURN_END, ROLE_OPEN, ROLE_CLOSE)
"""In the order of their ids, which are the last ones of a vocabulary."""

REQUIRED_TOKENS = (TEXT_START, DOCUMENT_END, TURN_END, ROLE_OPEN, ROLE_CLOSE)
"""Without these, no tokenizer can carry the chat format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Say which special token starts, ends and pads a text; the defaults are those of a chat model."""

    bos: str = TEXT_START
    eos: str = TURN_END
    pad: str = DOCUMENT_END
    stop_ids: tuple[int, ...] = ()
    """Further ids that end an answer, as `generation_config.json` lists them."""


CHAT = Roles()
PRETRAIN = Roles(eos=DOCUMENT_END)


def named_tokens(roles: Roles) -> dict[str, str]:
    """Give the entries of `special_tokens_map.json`, which `tokenizer_config.json` repeats."""
    return {
        "bos_token": roles.bos,
        "cls_token": CLS,
        "eos_token": roles.eos,
        "gmask_token": GMASK,
        "pad_token": roles.pad,
    }
