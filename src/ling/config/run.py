"""The section `run`: where a run begins, what it leaves behind, what it measures on the way."""

from dataclasses import dataclass
from typing import Literal

from ling.config.fields import check_fields
from ling.errors import ConfigError

TRACKERS = ("tensorboard", "trackio", "wandb")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything about a run that does not change what is computed, and the weights it begins with."""

    start_from: str | None = None
    """Checkpoint whose weights a run begins with: directory, GGUF file or hub name; None: new weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    threads: int = 0
    """CPU threads of torch; 0: as torch decides. One thread gives the same bits on any number of cores."""
    keep_checkpoints: int = 2
    """Newest resumable checkpoints that are kept."""
    save_in_background: bool = True
    """Whether training goes on while a checkpoint is written, from a copy of the state in host memory."""
    keep_every: int = 0
    """Steps between checkpoints that are kept for good, for `ling merge` among others; 0: none."""
    export_every: int = 0
    """Steps between exports as Hugging Face directories; 0: none but the last."""
    export_last: bool = True
    """Whether the finished model is exported as a Hugging Face directory."""
    evaluate_every: int = 0
    """Steps between evaluations on held-out text and tasks; 0: none."""
    evaluate_tokens: int = 8192
    """Held-out tokens that an evaluation reads."""
    evaluate_prompts: int = 8
    """Held-out prompts per generated task that an evaluation answers; 0: none."""
    track: tuple[str, ...] = ()
    """Where numbers go beside `metrics.jsonl`: tensorboard, trackio, wandb."""
    profile_from: int = 0
    """First step (counted from 1) that torch's profiler records; 0: none."""
    profile_steps: int = 3
    """Steps that it records."""

    def __post_init__(self) -> None:
        check_fields(self, "run")
        for name in (
            "threads", "keep_every", "export_every", "evaluate_every", "evaluate_prompts", "profile_from",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ConfigError(f"run.{name} must not be negative, got {getattr(self, name)}")
        for name in ("keep_checkpoints", "evaluate_tokens", "profile_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"run.{name} must be at least 1, got {getattr(self, name)}")
        if unknown := [name for name in self.track if name not in TRACKERS]:
            raise ConfigError(f"run.track {unknown[0]} is not known; use {', '.join(TRACKERS)}")
