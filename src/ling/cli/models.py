"""Opening the model a command names."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ling.engine.llm import LLM


def open_model(directory: Path | None, *, num_drafts: int) -> "LLM":
    """Return an engine over `directory`, which may be a hub's name, or over the bundled model."""
    from ling.checkpoint.hub import resolve_checkpoint
    from ling.engine.bundled import bundled_directory
    from ling.engine.llm import LLM

    if directory is None:
        import torch

        torch.set_num_threads(1)  # its tensors are too small to share: on a busy machine two threads only wait
        directory = bundled_directory()
    else:
        directory = resolve_checkpoint(directory)
    return LLM.load(directory, num_drafts=num_drafts)
