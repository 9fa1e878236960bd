"""All checks, in the order in which they are asked. A check is a function that yields what it finds."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from ling.checkpoint.doctor import files, fp8, network, packed, rotary, stretching, tensors, texts
from ling.checkpoint.doctor.evidence import CONFIG, Evidence, gather
from ling.checkpoint.doctor.finding import SEVERITIES, Edit, Finding, error, one_line
from ling.checkpoint.prepared import is_packed
from ling.config import ModelConfig
from ling.errors import CheckpointError, ConfigError

OF_FILES: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (
    files.unreadable, files.index, files.pickles, files.format_mark, files.auto_map, texts.tokenizer_there,
    texts.chat_template,
)  # fmt: skip

OF_THE_MODEL: tuple[Callable[[Evidence, ModelConfig], Iterator[Finding]], ...] = (
    tensors.all_there, tensors.mtp, tensors.vocabulary, fp8.declared, fp8.scales, fp8.kept_unquantized,
    rotary.rotary_width, rotary.rope_base, stretching.stretching, stretching.context, network.said_in_full,
    network.router_precision, network.expert_groups, network.expert_bias_precision, network.dtype_of_weights,
    network.mtp_in_engines, texts.stop_ids,
)  # fmt: skip
"""These run if config.json describes a network at all."""

FOR_OTHERS = (files.format_mark, files.auto_map)
"""Checks of files that matter to other programs alone."""
OF_PACKED_WEIGHTS: tuple[Callable[[Evidence, ModelConfig], Iterator[Finding]], ...] = (
    packed.packed_weights, packed.vocabulary, texts.stop_ids,
)  # fmt: skip
"""These run in place of those before on weights that are prepared for ling alone."""


def examine(directory: Path) -> list[Finding]:
    """Return every trap in a Hugging Face directory, worst first, without reading weights.

    Raises CheckpointError if it is no such directory.
    """
    seen = gather(directory)
    prepared = is_packed(seen.raw_config)
    of_files = [check for check in OF_FILES if not (prepared and check in FOR_OTHERS)]
    found = [named(finding, check) for check in of_files for finding in check(seen)]
    if seen.model is not None:
        model = seen.model
        of_model = OF_PACKED_WEIGHTS if prepared else OF_THE_MODEL
        try:
            found += [named(finding, check) for check in of_model for finding in check(seen, model)]
        except (CheckpointError, ConfigError) as problem:  # a network that no checkpoint could hold
            found.append(
                dataclasses.replace(error(CONFIG, one_line(str(problem)), "mend config.json"), check="all-there")
            )
    if seen.nested:  # the changes are for a flat file
        found = [dataclasses.replace(f, repair=None) if _edits_config(f) else f for f in found]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def named(finding: Finding, check: Callable[..., Iterator[Finding]]) -> Finding:
    """Return `finding` with the name of the check that made it, on lines that a terminal can show."""
    return dataclasses.replace(
        finding, check=check.__name__.replace("_", "-"), where=one_line(finding.where), what=one_line(finding.what),
        fix=one_line(finding.fix),
    )  # fmt: skip


def _edits_config(finding: Finding) -> bool:
    return isinstance(finding.repair, Edit) and finding.repair.file == CONFIG
