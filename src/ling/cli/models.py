"""Opening the model a command names."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ling.engine.llm import LLM


def find_model(name: Path | None) -> Path:
    """Return the directory of `name`, which may be a hub's name; or that of the bundled model."""
    from ling.checkpoint.hub import resolve_checkpoint
    from ling.engine.bundled import bundled_directory

    return bundled_directory() if name is None else resolve_checkpoint(name)


def open_model(name: Path | None, *, num_drafts: int | None = None, **options: Any) -> "LLM":
    """Return an engine over the model called `name`, or over the bundled one.

    num_drafts  most tokens proposed per step; 0: no drafting; None: as `options` say
    options     of `LLM`
    """
    from ling.engine.llm import LLM

    if name is None:
        import torch

        torch.set_num_threads(1)  # its tensors are too small to share: on a busy machine two threads only wait
    if num_drafts is not None:
        options |= {"num_speculative_tokens": num_drafts} if num_drafts else {"drafting": "none"}
    return LLM(find_model(name), **options)


def tell_apart(directory: Path) -> dict[str, Any]:
    """Return what tells a checkpoint from others, without its weights: config and sizes of files."""
    config = directory / "config.json"
    sizes = {
        file.name: file.stat().st_size for pattern in ("*.json", "*.safetensors") for file in directory.glob(pattern)
    }
    digest = hashlib.sha256(config.read_bytes()).hexdigest() if config.exists() else None
    return {"config": digest, "sizes": dict(sorted(sizes.items()))}
