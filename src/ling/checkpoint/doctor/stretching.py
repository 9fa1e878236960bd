"""Checks of stretched contexts: YaRN as every reader spells it, and the lengths that go with it (spec: model.md 5)."""

from collections.abc import Iterator, Mapping
from typing import Any

from ling.checkpoint.doctor.evidence import CONFIG, TOKENIZER_CONFIG, Evidence, is_number
from ling.checkpoint.doctor.finding import Edit, Finding, note, warning
from ling.config import ModelConfig, read_published, write_published
from ling.errors import ConfigError


def stretching(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """YaRN is spelt so that no reader drops it."""
    yield from _contradicting(seen, model)
    scaling, raw = model.rope_scaling, seen.section("rope_scaling") or seen.section("rope_parameters")
    where = f"{CONFIG}: rope_scaling"
    if scaling is None:
        if is_number(raw.get("factor")) and raw["factor"] != 1:
            told = str(raw.get("rope_type") or raw.get("type") or "no type")
            yield warning(
                where, f"factor {raw['factor']:g} with {told}: ling and transformers stretch nothing",
                "write type and rope_type, yarn for this family", _as_yarn(seen, raw),
            )  # fmt: skip
        return
    complete = write_published(model)
    both = Edit(file=CONFIG, set={key: complete[key] for key in ("rope_scaling", "rope_parameters")})
    if scaling.factor == 1:
        yield warning(where, "factor 1 stretches nothing", "write the factor, or remove rope_scaling")
    if scaling.type == "yarn" and raw.get("original_max_position_embeddings") is None:
        yield warning(
            where,
            "original_max_position_embeddings is missing: vLLM fails, and transformers takes "
            f"max_position_embeddings ({seen.config.get('max_position_embeddings')}), stretched or not",
            "write the trained context, such as 32768",
        )
    elif not (raw.get("rope_type") and raw.get("type")) and scaling.factor != 1:
        lacking, reader = ("rope_type", "newer") if raw.get("type") else ("type", "older")
        yield warning(where, f"no {lacking}: {reader} readers see no stretching", "write type and rope_type", both)


def context(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """`max_position_embeddings` agrees with the stretching and the tokenizer."""
    told, where = seen.config.get("max_position_embeddings"), f"{CONFIG}: max_position_embeddings"
    scaling = model.rope_scaling
    trained = scaling.original_max_position_embeddings if scaling is not None else None
    if told is None:
        yield warning(
            where, f"missing: readers fill in their own; ling takes {model.max_position_embeddings}", "write it"
        )
    elif scaling is not None and trained and seen.section("rope_scaling").get("original_max_position_embeddings"):
        stretched = int(scaling.factor * trained)
        if told < stretched:
            yield warning(
                where,
                f"{told}, but YaRN stretches to {stretched}: transformers 4.52 takes their ratio {told / trained:g} "
                f"for the factor {scaling.factor:g}",
                f"write {stretched}",
                Edit(file=CONFIG, set={"max_position_embeddings": stretched}),
            )
        elif told > stretched:
            yield warning(
                where, f"{told} is beyond what YaRN stretches to, {stretched}", f"write {stretched}, or raise factor"
            )
    limit = seen.tokenizer_config.get("model_max_length")
    if is_number(limit) and limit < model.max_position_embeddings:
        yield note(
            f"{TOKENIZER_CONFIG}: model_max_length",
            f"{limit:g} is less than the context, {model.max_position_embeddings}: some programs truncate there",
        )


def _contradicting(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """`rope_parameters` must not say "no stretching" beside a `rope_scaling` that stretches."""
    scaling, nested = seen.section("rope_scaling"), seen.section("rope_parameters")
    if not (scaling and nested):
        return
    kinds = [str(raw.get("rope_type") or raw.get("type") or "default") for raw in (scaling, nested)]
    if kinds[0] != kinds[1] or (kinds[0] != "default" and scaling.get("factor") != nested.get("factor")):
        yield warning(
            f"{CONFIG}: rope_parameters",
            f"{kinds[1]} (factor {nested.get('factor')}) contradicts rope_scaling, "
            f"{kinds[0]} (factor {scaling.get('factor')}); ling and transformers take rope_scaling",
            "write rope_parameters anew from rope_scaling",
            Edit(file=CONFIG, set={"rope_parameters": write_published(model)["rope_parameters"]}),
        )


def _as_yarn(seen: Evidence, raw: Mapping[str, Any]) -> Edit | None:
    """Spell out what has a factor and a trained context, which only YaRN asks for; None if it lacks one."""
    if raw.get("original_max_position_embeddings") is None:
        return None
    meant = {**seen.config, "rope_scaling": {**raw, "type": "yarn", "rope_type": "yarn"}}
    try:
        complete = write_published(read_published(meant))
    except ConfigError:
        return None
    keys = ("rope_scaling", "rope_parameters", "max_position_embeddings")
    return Edit(file=CONFIG, set={key: complete[key] for key in keys})
