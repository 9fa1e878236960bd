"""Checks of what surrounds the weights for text: the tokenizer, the ids that end an answer, the chat template."""

from collections.abc import Iterator
from typing import Any

from ling.checkpoint.doctor.evidence import CONFIG, GENERATION, TEMPLATE, TOKENIZER_CONFIG, Evidence
from ling.checkpoint.doctor.finding import Edit, Finding, note, warning
from ling.config import ModelConfig
from ling.tokenizer import Tokenizer


def tokenizer_there(seen: Evidence) -> Iterator[Finding]:
    """A tokenizer lies beside the weights, and starts no text with a token of its own."""
    if "tokenizer.json" not in seen.files and not seen.is_mtp_alone:
        yield warning(
            "tokenizer.json", "absent: the weights cannot be talked to", "copy the model's tokenizer beside them"
        )
    if seen.tokenizer_config.get("add_bos_token"):
        yield warning(
            f"{TOKENIZER_CONFIG}: add_bos_token",
            "true: no Ling prompt starts with a BOS token",
            "write false",
            Edit(file=TOKENIZER_CONFIG, set={"add_bos_token": False}),
        )


def stop_ids(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """A chat model stops at the end of a turn and at the end of a document; engines read both from two files."""
    if (tokenizer := seen.tokenizer) is None:
        return
    needed = sorted({tokenizer.eod_id, tokenizer.eos_id})
    written: Any = needed if len(needed) > 1 else needed[0]
    given = _ids(seen.generation.get("eos_token_id"))
    if GENERATION not in seen.files or seen.generation:
        lacking = [x for x in needed if x not in given]
        if lacking:
            told = "absent" if GENERATION not in seen.files else "missing" if not given else str(given)
            yield warning(
                f"{GENERATION}: eos_token_id",
                f"{told}: engines run on past {_spelt(tokenizer, lacking)}",
                f"write {sorted({*needed, *given})}",
                Edit(
                    file=GENERATION,
                    set={
                        "eos_token_id": sorted({*needed, *given}) if given else written,
                        **_completing(seen, tokenizer),
                    },
                ),
            )
    if lacking := [x for x in needed if x not in model.eos_token_ids]:
        text = f"{list(model.eos_token_ids)} leaves out {_spelt(tokenizer, lacking)}"
        both = sorted({*needed, *model.eos_token_ids})
        fix = f"write {both if len(both) > 1 else both[0]}"
        repair = Edit(file=CONFIG, set={"eos_token_id": both if len(both) > 1 else both[0]})
        yield warning(f"{CONFIG}: eos_token_id", f"{text}; engines without {GENERATION} run on past it", fix, repair)


def chat_template(seen: Evidence) -> Iterator[Finding]:
    """The template that other programs render chats with is there, once."""
    if seen.tokenizer is None:
        return
    told, own = seen.tokenizer_config.get("chat_template"), TEMPLATE in seen.files
    if not told and not own:
        lost = "absent: engines refuse chats, or invent a format"
        where, fix = f"{TOKENIZER_CONFIG}: chat_template", "copy it from the model's repository"
        yield warning(where, lost, fix) if seen.tokenizer.is_chat else note(where, "absent: fine for a base model", fix)
    if told and own and _text(seen, TEMPLATE).strip() != str(told).strip():
        yield warning(
            TEMPLATE,
            f"it differs from chat_template in {TOKENIZER_CONFIG}; transformers takes the file, others the key",
            "remove the wrong one",
        )


def _completing(seen: Evidence, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the rest of a generation_config.json that is not there yet."""
    return {} if GENERATION in seen.files else {"pad_token_id": tokenizer.pad_id, "do_sample": False}


def _spelt(tokenizer: Tokenizer, ids: list[int]) -> str:
    return " and ".join(f"{x} ({tokenizer.decode([x])})" for x in ids)


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [x for x in values if type(x) is int]


def _text(seen: Evidence, name: str) -> str:
    try:
        return (seen.directory / name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
