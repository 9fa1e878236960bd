"""Lines of the input: what each asks, and a fingerprint by which its answer is known again."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ling.data.records import DamagedRecordError, Record, read_records
from ling.engine.request import SamplingParams, StructuredOutputsParams
from ling.errors import LingError, RequestError

_SAMPLING = {field.name for field in dataclasses.fields(SamplingParams)} - {"prompt_logprobs"}
FIELDS = {"id", "prompt", "messages", "tools"} | _SAMPLING
_FORMS = {field.name for field in dataclasses.fields(StructuredOutputsParams)}
_PARAMS = TypeAdapter(SamplingParams)


@dataclass(frozen=True, slots=True)
class Line:
    """A record of the input that is not parsed yet; `index` counts records from 0."""

    index: int
    record: Record
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Job:
    """What the engine is asked for one line."""

    line: Line
    id: Any
    prompt: list[int]
    params: SamplingParams


def read_lines(file: Path, settings: Mapping[str, Any]) -> Iterator[Line]:
    """Read the input; the same line under the same `settings` has the same fingerprint. Raises DataError."""
    common = json.dumps(settings, sort_keys=True, default=str).encode()
    for index, record in enumerate(read_records(file)):
        raw = record.raw if isinstance(record.raw, bytes) else json.dumps(record.raw, sort_keys=True).encode()
        yield Line(index, record, hashlib.sha256(common + b"\n" + raw).hexdigest()[:16])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Makes jobs of lines.

    params       what a line does not say itself; a line without a seed has this one's plus its index
    encode       text to token ids, for lines that are continued as they are; None: text is one message of a chat
    chat_prompt  messages and tools to token ids
    """

    params: SamplingParams
    encode: Callable[[str], list[int]] | None
    chat_prompt: Callable[[Sequence[Mapping[str, Any]], Sequence[Any]], list[int]]

    def job(self, line: Line) -> Job:
        """Read one line. Raises LingError for one that cannot be asked."""
        try:
            value = line.record.parse()
        except DamagedRecordError as error:
            raise RequestError(f"not JSON: {error}") from None
        if not isinstance(value, dict):
            raise RequestError(f"a line is a JSON object, got {type(value).__name__}")
        if unknown := sorted(set(value) - FIELDS):
            raise RequestError(f"unknown field {unknown[0]}; what is yours may stand under id")
        return Job(line, value.get("id"), self._prompt(value), self._params(value, line.index))

    def _prompt(self, value: Mapping[str, Any]) -> list[int]:
        if ("prompt" in value) == ("messages" in value):
            raise RequestError("a line has either prompt or messages")
        if "tools" in value and "messages" not in value:
            raise RequestError("tools belong to messages")
        if "messages" in value:
            messages, tools = value["messages"], value.get("tools") or []
            if not (isinstance(messages, list) and all(isinstance(m, dict) for m in messages)):
                raise RequestError("messages must be a list of objects")
            if not isinstance(tools, list):
                raise RequestError("tools must be a list")
            return self.chat_prompt(messages, tools)
        prompt = value["prompt"]
        if isinstance(prompt, list) and all(type(x) is int for x in prompt):
            return prompt
        if not isinstance(prompt, str):
            raise RequestError("prompt must be text or a list of token ids")
        if self.encode is not None:
            return self.encode(prompt)
        return self.chat_prompt([{"role": "user", "content": prompt}], [])

    def _params(self, value: Mapping[str, Any], index: int) -> SamplingParams:
        own = {name: value[name] for name in value if name in _SAMPLING}
        form = own.get("structured_outputs")
        if isinstance(form, dict) and (unknown := sorted(set(form) - _FORMS)):
            raise RequestError(f"unknown field structured_outputs.{unknown[0]}")
        try:
            found = _PARAMS.validate_json(json.dumps(own), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            raise RequestError(f"{first['loc'][0]}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None
        given = {name: getattr(found, name) for name in own}
        if "seed" not in own and self.params.seed is not None:
            given["seed"] = self.params.seed + index
        return dataclasses.replace(self.params, **given)


def describe(error: Exception) -> str:
    """Return what a line of the output says of an answer that failed."""
    return str(error) if isinstance(error, LingError) else f"{type(error).__name__}: {error}".rstrip(": ")
