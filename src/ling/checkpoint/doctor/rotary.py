"""Checks of rotary width, base and stretching: the keys that readers disagree about most (spec: model.md 2, 5)."""

from collections.abc import Iterator, Mapping
from typing import Any

from ling.checkpoint.doctor.evidence import CONFIG, Evidence
from ling.checkpoint.doctor.finding import Edit, Finding, error, note, warning
from ling.config import ModelConfig, write_published

_DEFAULT_BASE = 10000.0
"""What engines take where they find none."""


def rotary_width(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """Both spellings of the width stand in the file, since each has readers that know no other."""
    nested = _object(seen, "rope_parameters")
    by_dim = seen.config.get("rotary_dim")
    by_factor = seen.config.get("partial_rotary_factor")
    complete = write_published(model)
    keys = {key: complete[key] for key in ("rotary_dim", "partial_rotary_factor")}
    fix = f"write rotary_dim {keys['rotary_dim']} and partial_rotary_factor {keys['partial_rotary_factor']:g}"
    where = f"{CONFIG}: rotary_dim, partial_rotary_factor"
    if (
        not by_dim
        and by_factor is None
        and nested.get("partial_rotary_factor") is None
        and not nested.get("rotary_dim")
    ):
        yield warning(
            where,
            f"neither is there: every reader rotates all {model.head_dim} channels, the Ling 2.0 models half of them",
            "write the width the model was trained with",
        )
    elif not by_dim:
        yield warning(
            where,
            f"no rotary_dim: vLLM and SGLang with transformers 5.20 rotate all {model.head_dim} channels, "
            f"not {model.rotated_dim}",
            fix,
            Edit(file=CONFIG, set=keys),
        )
    elif by_factor is None:
        yield warning(
            where,
            f"no partial_rotary_factor: transformers rotates all {model.head_dim} channels, not {model.rotated_dim}",
            fix,
            Edit(file=CONFIG, set=keys),
        )


def rope_base(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """The base stands at the top, where older readers look, and in `rope_parameters`, where newer ones do."""
    top, nested = seen.config.get("rope_theta"), _object(seen, "rope_parameters").get("rope_theta")
    complete = Edit(file=CONFIG, set={key: write_published(model)[key] for key in ("rope_theta", "rope_parameters")})
    if top is None and nested is None:
        yield warning(
            f"{CONFIG}: rope_theta",
            f"missing: readers fill in {model.rope_theta:g} or {_DEFAULT_BASE:g}",
            "write the base the model was trained with (10000 for 4K checkpoints, 600000 for 32K)",
        )
    elif top is not None and nested is not None and top != nested:
        yield error(f"{CONFIG}: rope_theta", f"{top:g} contradicts {nested} in rope_parameters", "remove the wrong one")
    elif nested is None and model.rope_theta != _DEFAULT_BASE:
        yield warning(
            f"{CONFIG}: rope_theta",
            "only at the top level: some vLLM take 10000, and text repeats itself (vllm#56066)",
            "write rope_parameters beside it",
            complete,
        )
    elif top is None:
        yield warning(
            f"{CONFIG}: rope_theta",
            "only in rope_parameters, which transformers 4 does not read",
            "write it at the top level too",
            complete,
        )


def stretching(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """YaRN is spelt so that no reader drops it."""
    yield from _contradicting(seen, model)
    scaling, raw = model.rope_scaling, _object(seen, "rope_scaling") or _object(seen, "rope_parameters")
    if scaling is None:
        return
    where = f"{CONFIG}: rope_scaling"
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
    elif scaling is not None and trained and _object(seen, "rope_scaling").get("original_max_position_embeddings"):
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
    if isinstance(limit, int | float) and not isinstance(limit, bool) and limit < model.max_position_embeddings:
        yield note(
            "tokenizer_config.json: model_max_length",
            f"{limit:g} is less than the context, {model.max_position_embeddings}: some programs truncate there",
        )


def _contradicting(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """`rope_parameters` must not say "no stretching" beside a `rope_scaling` that stretches."""
    scaling, nested = _object(seen, "rope_scaling"), _object(seen, "rope_parameters")
    if not (scaling and nested):
        return
    kinds = [str(raw.get("rope_type") or raw.get("type") or "default") for raw in (scaling, nested)]
    if kinds[0] != kinds[1] or scaling.get("factor") != nested.get("factor"):
        yield warning(
            f"{CONFIG}: rope_parameters",
            f"{kinds[1]} (factor {nested.get('factor')}) contradicts rope_scaling, "
            f"{kinds[0]} (factor {scaling.get('factor')}); ling and transformers take rope_scaling",
            "write rope_parameters anew from rope_scaling",
            Edit(file=CONFIG, set={"rope_parameters": write_published(model)["rope_parameters"]}),
        )


def _object(seen: Evidence, key: str) -> Mapping[str, Any]:
    value = seen.config.get(key)
    return value if isinstance(value, Mapping) else {}
