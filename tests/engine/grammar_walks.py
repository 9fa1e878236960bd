"""Random ways through a grammar, and a judge of JSON that is not llguidance's."""

import re
from functools import cache
from typing import Any

import torch

from ling.engine.bundled import bundled_directory
from ling.engine.grammar import Grammar, GrammarCompiler
from ling.engine.request import StructuredOutputsParams
from ling.tokenizer.tokenizer import Tokenizer

PAD_ROWS = 50
"""By which the model's vocabulary exceeds the tokenizer's."""

TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "null": type(None),
}


@cache
def bundled_tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(bundled_directory())


@cache
def bundled_compiler() -> GrammarCompiler:
    return GrammarCompiler(bundled_tokenizer(), bundled_tokenizer().vocab_size + PAD_ROWS)


def of_json(compiler: GrammarCompiler, schema: object) -> Grammar:
    return compiler.compile(StructuredOutputsParams(json=schema))  # type: ignore[arg-type]


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token per byte, so that every state between is visited."""
    by_bytes = {tokenizer.token_bytes(id): id for id in reversed(range(tokenizer.vocab_size))}
    return [by_bytes[bytes([byte])] for byte in text.encode()]


def accepts(grammar: Grammar, tokenizer: Tokenizer, text: str) -> bool:
    """Whether the masks allow `text`, then the end."""
    ids = [*ids_of(tokenizer, text), tokenizer.stop_ids[0]]
    return grammar.matcher().allowed(ids)[1] == len(ids)


def walk(grammar: Grammar, tokenizer: Tokenizer, seed: int, most_tokens: int = 4000) -> str:
    """Choose uniformly among the allowed tokens until a stop id; return the text without it."""
    generator = torch.Generator().manual_seed(seed)
    matcher, ids = grammar.matcher(), []
    while not matcher.finished:
        (mask,), accepted = matcher.allowed()
        assert accepted == 0
        choices = mask.nonzero()[:, 0]
        ids.append(int(choices[torch.randint(len(choices), (1,), generator=generator)]))
        matcher.advance(ids[-1:])
        assert len(ids) < most_tokens, tokenizer.decode(ids)[-200:]
    return b"".join(map(tokenizer.token_bytes, ids[:-1])).decode()  # strict: no broken UTF-8


def conforms(value: Any, schema: Any, root: Any = None) -> bool:
    """Judge `value` by the keywords that the tests use."""
    root = schema if root is None else root
    if schema is True or schema is False:
        return bool(schema)
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].removeprefix("#").split("/")[1:]:
            target = target[part]
        return conforms(value, target, root)
    if "anyOf" in schema and not any(conforms(value, option, root) for option in schema["anyOf"]):
        return False
    if not all(conforms(value, part, root) for part in schema.get("allOf", ())):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    types = schema.get("type", list(TYPES))
    if not any(_is(value, name) for name in ([types] if isinstance(types, str) else types)):
        return False
    if isinstance(value, dict):
        named, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
        return set(schema.get("required", ())) <= value.keys() and all(
            conforms(inner, named.get(key, rest), root) for key, inner in value.items()
        )
    if isinstance(value, list):
        size = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return size and all(conforms(inner, schema.get("items", True), root) for inner in value)
    if isinstance(value, str):
        size = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
        return size and re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    return True


def _is(value: Any, name: str) -> bool:
    return isinstance(value, TYPES[name]) and (isinstance(value, bool) <= (name == "boolean"))
