"""What lies beside the weights of a published checkpoint: tokenizer, generation settings, model card."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ling.config import ModelConfig
from ling.errors import CheckpointError
from ling.scaling.parameters import count_parameters
from ling.tokenizer import Tokenizer
from ling.tokenizer.files import GENERATION, TOKENIZER
from ling.version import __version__

if TYPE_CHECKING:
    from ling.checkpoint.pieces import PieceSource
    from ling.checkpoint.save import ExportFormat

CARD = "README.md"
_BEGIN, _END = "<!-- how these files were made: written by ling -->", "<!-- end -->"
_PRECISIONS = {
    "float32": "float32",
    "bfloat16": "bfloat16; expert biases in float32",
    "float8": "E4M3 codes with a float32 scale per 128x128 block; embedding, head, router, norms and `eh_proj` in "
    "bfloat16, expert biases in float32",
}


def write_beside(directory: Path, source: "PieceSource", files: list[Path], storage: list[str], *, name: str) -> None:
    """Copy the tokenizer's `files`, and write the generation settings and the model card that are missing.

    storage  sentences that say how the tensors are stored
    name     what the card calls a model that came without one
    A card of the source is kept; a section at its end says how these files were made.
    """
    copy_files(files, directory)
    if not (directory / GENERATION).exists() and (settings := generation_settings(directory, source.config)):
        (directory / GENERATION).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    write_card(directory, source, storage, name=name)


def write_card(directory: Path, source: "PieceSource", storage: list[str], *, name: str) -> None:
    """Write the model card: the source's own, or a new one for a model called `name`, with how these files were made.

    storage  sentences that say how the tensors are stored
    """
    given = source.directory / CARD
    card = given.read_text(encoding="utf-8", errors="replace") if given.is_file() else _card(name, source.config)
    text = f"{_without_provenance(card)}\n\n{_BEGIN}\n{_provenance(source, storage)}\n{_END}\n"
    (directory / CARD).write_text(text, encoding="utf-8")


def copy_files(files: list[Path], directory: Path) -> None:
    """Copy `files` into `directory`, which is made if there are any."""
    for file in files:
        directory.mkdir(exist_ok=True)
        shutil.copy(file, directory / file.name)


def storage_of(export: "ExportFormat") -> list[str]:
    """Return sentences that say how `export` stores tensors."""
    lines = [f"Stored as {_PRECISIONS[export.precision]}."]
    if export.precision == "float8":
        scales = {None: "as in an FP8 source, else as in the published export", "fp32": "not rounded"}
        lines.append(f"Scales: {scales.get(export.fp8_scales, export.fp8_scales)}.")
    return lines


def generation_settings(directory: Path, config: ModelConfig) -> dict[str, Any]:
    """Return a generation_config.json for the tokenizer in `directory` and the ids of `config`; {} if none is known."""
    ends, pad = set(config.eos_token_ids), config.pad_token_id
    if (directory / TOKENIZER).exists():
        try:
            tokenizer = Tokenizer.from_directory(directory)
        except CheckpointError:  # of another family: what it calls an end is not known here
            pass
        else:
            ends |= set(tokenizer.stop_ids)
            pad = tokenizer.pad_id if pad is None else pad
    settings = {"eos_token_id": sorted(ends) or None, "pad_token_id": pad}
    known: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
    return known | {"do_sample": False} if known else {}


def _card(name: str, config: ModelConfig) -> str:
    counts = count_parameters(config)
    rows = {
        "parameters": f"{counts.total_with_mtp:,}",
        "active per token": f"{counts.activated:,}",
        "layers": f"{config.num_hidden_layers}, the first {config.first_k_dense_replace} dense",
        "experts": f"{config.num_experts} per layer, {config.num_experts_per_tok} per token, "
        f"{config.num_shared_experts} shared",
        "MTP layers": str(config.num_nextn_predict_layers),
        "context": f"{config.max_position_embeddings:,} tokens",
        "vocabulary": f"{config.vocab_size:,}",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [bailing_moe, mixture-of-experts]
---

# {name}

A language model of the Ling 2.0 architecture: a sparse mixture of experts with sigmoid routing, QK-norm and half rotary
embeddings.

| | |
| --- | --- |
{table}

With `ling` installed, `ling chat` opens this directory, and transformers loads it with `AutoModelForCausalLM` after
`import ling`."""


def _without_provenance(card: str) -> str:
    """Return a card as it was before an earlier conversion added its section."""
    before, found, rest = card.partition(_BEGIN)
    return (before.rstrip() + rest.partition(_END)[2]).rstrip() if found else card.rstrip()


def _provenance(source: "PieceSource", storage: list[str]) -> str:
    told = [*storage, f"MTP layers: {source.config.num_nextn_predict_layers}."]
    return (
        "## How these files were made\n\n"
        f"ling {__version__} wrote the weights of this directory from {source.directory.name} ({source.kind}).\n\n"
    ) + "\n".join(f"- {line}" for line in told)
