"""Checks of rotary width and base: the keys that readers disagree about most (spec: model.md 2)."""

from collections.abc import Iterator
from typing import Any

from ling.checkpoint.doctor.evidence import CONFIG, Evidence, is_number
from ling.checkpoint.doctor.finding import Edit, Finding, error, warning
from ling.config import ModelConfig, write_published

_DEFAULT_BASE = 10000.0
"""What engines take where they find none."""


def rotary_width(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """Both spellings of the width stand in the file, since each has readers that know no other."""
    nested = seen.section("rope_parameters")
    by_dim = seen.config.get("rotary_dim")
    by_factor = seen.config.get("partial_rotary_factor")
    complete = write_published(model)
    keys = {key: complete[key] for key in ("rotary_dim", "partial_rotary_factor")}
    for key in keys if by_dim or by_factor is not None else ():
        if (value := nested.get(key)) is not None and _width(key, value, model) != model.rotated_dim:
            yield error(
                f"{CONFIG}: rope_parameters.{key}",
                f"{str(value)[:20]} contradicts the width of {model.rotated_dim} at the top level; newer "
                "readers take this one",
                "remove the wrong one",
            )
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
    top, nested = seen.config.get("rope_theta"), seen.section("rope_parameters").get("rope_theta")
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


def _width(key: str, value: Any, model: ModelConfig) -> int | None:
    """Return how many channels a spelling of the width means; None if it means none."""
    if not is_number(value) or not 0 < value <= model.head_dim:
        return None
    return int(value if key == "rotary_dim" else model.head_dim * value)
