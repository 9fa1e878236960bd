"""The four files of a tokenizer directory, in the published layout.

    tokenizer.json            vocabulary, merges and pre-tokenizer, as the `tokenizers` library writes them
    tokenizer_config.json     what transformers reads: class, named tokens, chat template
    special_tokens_map.json   the named tokens again
    generation_config.json    ids that end an answer

Only the first one must be there. Reading never runs code.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ling.config.fields import shown
from ling.errors import CheckpointError
from ling.tokenizer.special import CHAT, DOCUMENT_END, PRETRAIN, Roles, named_tokens
from ling.tokenizer.template import PRETRAIN_TEMPLATE, SFT_TEMPLATE

TOKENIZER, CONFIG, SPECIAL_MAP, GENERATION = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"
)  # fmt: skip

_LARGEST_FILE = 2**28
NO_LENGTH_LIMIT = int(1e30)
"""How transformers spells "the tokenizer does not limit the length"."""


def read_serialized(directory: Path) -> str:
    """Read `tokenizer.json` as text."""
    path = directory / TOKENIZER
    try:
        if (size := path.stat().st_size) > _LARGEST_FILE:
            raise CheckpointError(f"{path} has {size:,} bytes, which is no tokenizer. Copy it again.")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        what = f"{directory} has no tokenizer.json" if directory.is_dir() else f"there is no directory {directory}"
        raise CheckpointError(f"{what}; give the one that holds the model's tokenizer.json") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None


def read_roles(directory: Path) -> Roles:
    """Read which tokens start, end and pad a text; what the files do not say is as in a chat model."""
    named = _read_object(directory / SPECIAL_MAP) | _read_object(directory / CONFIG)
    generation = _read_object(directory / GENERATION)
    return Roles(
        bos=_spelling(named, "bos_token", CHAT.bos, directory),
        eos=_spelling(named, "eos_token", CHAT.eos, directory),
        pad=_spelling(named, "pad_token", CHAT.pad, directory),
        stop_ids=_ids(generation.get("eos_token_id"), directory / GENERATION),
    )


def named_ids(directory: Path) -> dict[str, int]:
    """Return `eos_token_id` and `pad_token_id` of a tokenizer of any family, those that it has."""
    named = _read_object(directory / SPECIAL_MAP) | _read_object(directory / CONFIG)
    content = _read_object(directory / TOKENIZER)
    added, model = content.get("added_tokens") or [], content.get("model")
    known = {token.get("content"): token.get("id") for token in added if isinstance(token, dict)}
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids: dict[str, int] = {}
    for key in ("eos_token", "pad_token"):
        spelling = _spelling(named, key, "", directory)
        id = known.get(spelling, vocabulary.get(spelling) if isinstance(vocabulary, dict) else None)
        if isinstance(id, int):
            ids[f"{key}_id"] = id
    return ids


def write_files(directory: Path, serialized: str, ids: dict[str, int], roles: Roles, *, chat: bool) -> None:
    """Write all four files.

    serialized  the text of `tokenizer.json`
    ids         of every special token
    roles       of the tokenizer at hand; its end of text is replaced by that of the configuration asked for
    chat        the configuration of a chat model, or that of a pre-trained one
    """
    roles = replace(roles, eos=(CHAT if chat else PRETRAIN).eos)
    names = {key: token for key, token in named_tokens(roles).items() if token in ids}
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        **names,
        "chat_template": SFT_TEMPLATE if chat else PRETRAIN_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": NO_LENGTH_LIMIT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    generation: dict[str, Any] = {
        "eos_token_id": ids[DOCUMENT_END],
        "pad_token_id": ids[roles.pad],
        "do_sample": False,
    }
    if chat:
        ends = sorted({ids[DOCUMENT_END], ids[roles.eos], *roles.stop_ids})
        generation |= {"bos_token_id": ids[roles.bos], "eos_token_id": ends}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / TOKENIZER).write_text(serialized, encoding="utf-8")
        for name, content in ((CONFIG, config), (SPECIAL_MAP, names), (GENERATION, generation)):
            text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
            (directory / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write a tokenizer to {directory}: {error.strerror or error}") from None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        if (size := path.stat().st_size) > _LARGEST_FILE:
            raise CheckpointError(f"{path} has {size:,} bytes, which is no tokenizer's. Copy it again, or remove it.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}. Copy it again, or remove it.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, it holds a {type(content).__name__}")
    return content


def _spelling(named: dict[str, Any], key: str, default: str, directory: Path) -> str:
    """Take a token as JSON writes it: its spelling, an object with that as `content`, or nothing."""
    value = named.get(key)
    if value is None:
        return default
    spelling = value.get("content") if isinstance(value, dict) else value
    if not isinstance(spelling, str):
        raise CheckpointError(f"{key} in {directory} must be a token's spelling, got {shown(value)}")
    return spelling


def _ids(value: object, path: Path) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(id, int) and not isinstance(id, bool) and id >= 0 for id in ids):
        raise CheckpointError(f"eos_token_id in {path} must be a token id or a list of them, got {shown(value)}")
    return tuple(ids)
