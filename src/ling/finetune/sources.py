"""Where data sets lie and how they are spelt: plain paths, or entries of LLaMA-Factory's `dataset_info.json`.

Of an entry these keys count: file_name, formatting, columns, tags, num_samples. As there, a column that `columns`
leaves out is not read; a tag that `tags` leaves out keeps its default, where LLaMA-Factory would skip every message.
What asks for something else (other places, images, preferences) is refused by name.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ling.config.fields import shown
from ling.config.finetune import FinetuneConfig, Format
from ling.data.records import SUFFIXES, kind_of, read_json
from ling.errors import ConfigError, DataError
from ling.finetune.formats import AlpacaFormat, ChatFormat

logger = logging.getLogger(__name__)

_ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
_OTHER_COLUMNS = ("images", "videos", "audios", "chosen", "rejected", "kto_tag")
_ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "history": None}
_TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
    "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip
_ROLES = {
    "user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool", "function_tag": "call",
    "system_tag": "system",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Source:
    """A data set: its files in order, how to read a record, and how many records to read (0: all)."""

    name: str
    files: tuple[Path, ...]
    format: ChatFormat | AlpacaFormat
    max_records: int = 0


def find_sources(config: FinetuneConfig) -> list[Source]:
    """Find the data sets that a configuration names. Raises ConfigError or DataError before anything is read."""
    if not config.data:
        raise ConfigError("finetune.data names no data; give files, such as finetune.data=[train.jsonl]")
    if len(set(config.data)) < len(config.data):
        raise ConfigError(f"finetune.data names a data set twice: {', '.join(config.data)}")
    if config.dataset_info is None:
        format = default_format(config.format)
        return [Source(name, _files(Path(name)), format, config.max_samples) for name in config.data]
    info = Path(config.dataset_info)
    entries = _read_info(info)
    return [_from_entry(name, entries, info, config.max_samples) for name in config.data]


def default_format(name: Format) -> ChatFormat | AlpacaFormat:
    """Return a format with the names it has when nobody chose others."""
    match name:
        case "messages":
            return ChatFormat()
        case "alpaca":
            return AlpacaFormat()
        case "openai":
            roles = {
                "system": "system",
                "user": "user",
                "assistant": "assistant",
                "tool": "tool",
                "function_call": "call",
            }
            return ChatFormat(messages=("messages",), system="system", roles=roles, wrap_tools=True)
        case "sharegpt":
            return _chat({}, {"messages": "conversations", "system": "system", "tools": "tools"})


def _chat(tags: dict[str, str], columns: dict[str, str | None]) -> ChatFormat:
    tags = _TAGS | tags
    return ChatFormat(
        messages=(columns["messages"] or "",), system=columns.get("system"), tools=columns.get("tools"),
        role=tags["role_tag"], content=tags["content_tag"],
        roles={tags[tag]: role for tag, role in _ROLES.items()}, wrap_tools=True,
    )  # fmt: skip


def _files(path: Path) -> tuple[Path, ...]:
    """Return a file, or those of a directory by name."""
    if path.is_dir():
        files = tuple(sorted(file for file in path.iterdir() if kind_of(file) in SUFFIXES))
        if not files:
            raise DataError(f"{path} holds no file that ends in {', '.join(SUFFIXES)}")
        return files
    if not path.is_file():
        raise DataError(f"there is no data file {path}")
    if kind_of(path) not in SUFFIXES:
        raise DataError(f"{path} ends in none of {', '.join(SUFFIXES)}; convert it to jsonl")
    return (path,)


# ---- dataset_info.json ----


def _read_info(path: Path) -> dict[str, Any]:
    try:
        entries = read_json(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read finetune.dataset_info {path}: {error.strerror}") from None
    except ValueError as error:  # not UTF-8 either
        raise ConfigError(f"finetune.dataset_info {path} is not JSON: {error}") from None
    if not isinstance(entries, dict):
        raise ConfigError(f"finetune.dataset_info {path} must be an object of data sets, not {shown(entries)}")
    return entries


def _from_entry(name: str, entries: dict[str, Any], info: Path, max_samples: int) -> Source:
    if name not in entries:
        raise ConfigError(f"{info} has no data set {name}; it has {', '.join(sorted(entries)[:20]) or 'none'}")
    entry, where = entries[name], f"{name} in {info}"
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} must be an object, got {shown(entry)}")
    columns, tags = _names(entry, "columns", where), _names(entry, "tags", where)
    _refuse(entry, columns, where)
    format = _format(entry, columns, {key: value for key, value in tags.items() if value is not None}, where)
    file = entry.get("file_name")
    if not isinstance(file, str) or not file:
        raise ConfigError(f"{where} needs a file_name")
    count = entry.get("num_samples") or 0
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ConfigError(f"num_samples of {where} must be a number of samples, got {shown(count)}")
    limits = [limit for limit in (count, max_samples) if limit]
    return Source(name, _files(info.parent / file), format, min(limits, default=0))


def _names(entry: dict[str, Any], key: str, where: str) -> dict[str, str | None]:
    given = entry.get(key) or {}
    if not isinstance(given, dict) or not all(isinstance(name, str | None) for name in given.values()):
        raise ConfigError(f"{key} of {where} must be an object of names, got {shown(given)}")
    return given


def _refuse(entry: dict[str, Any], columns: dict[str, str | None], where: str) -> None:
    for key in _ELSEWHERE:
        if entry.get(key):
            raise ConfigError(f"{where} lies elsewhere ({key}); download it, and give it a file_name")
    if entry.get("ranking") or any(columns.get(key) for key in ("chosen", "rejected", "kto_tag")):
        raise ConfigError(f"{where} holds preferences; supervised fine-tuning learns from answers alone")
    for key in _OTHER_COLUMNS:
        if columns.get(key):
            raise ConfigError(f"{where} has {key}, which a model of text cannot read")
    for key in ("subset", "folder"):
        if entry.get(key):
            raise ConfigError(f"{key} of {where} belongs to data sets of a hub; write out the part that is meant")
    if entry.get("split", "train") != "train":
        raise ConfigError(f"split of {where} is {shown(entry['split'])}, but a file has no splits; name another file")
    known = {"file_name", "formatting", "columns", "tags", "num_samples", "split", "ranking", "subset", "folder"}
    for key in sorted(entry.keys() - known - set(_ELSEWHERE)):
        logger.warning("%s of %s is ignored: nothing reads it", key, where)


def _format(
    entry: dict[str, Any], columns: dict[str, str | None], tags: dict[str, str], where: str
) -> ChatFormat | AlpacaFormat:
    formatting = entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise ConfigError(f"formatting of {where} is {shown(formatting)}; known: alpaca, sharegpt, openai")
    known = {"system", "tools", *_OTHER_COLUMNS, *(_ALPACA_COLUMNS if formatting == "alpaca" else {"messages"})}
    unknown = [f"columns.{key}" for key in columns.keys() - known]
    unknown += [f"tags.{key}" for key in tags.keys() - (set() if formatting == "alpaca" else _TAGS.keys())]
    if unknown:
        raise ConfigError(f"{where} has {min(unknown)}, which {formatting} does not know")
    if formatting == "alpaca":
        chosen: dict[str, Any] = columns if "columns" in entry else dict(_ALPACA_COLUMNS)
        return AlpacaFormat(**{key: chosen.get(key) for key in (*_ALPACA_COLUMNS, "system", "tools")})
    if "columns" in entry and not columns.get("messages"):
        raise ConfigError(f"columns of {where} leave out messages, without which nothing is read")
    names = _TAGS | tags
    if len({names[tag] for tag in _ROLES}) < len(_ROLES):
        raise ConfigError(f"tags of {where} give two roles one name: {', '.join(names[tag] for tag in _ROLES)}")
    return _chat(tags, columns if "columns" in entry else {"messages": "conversations"})
