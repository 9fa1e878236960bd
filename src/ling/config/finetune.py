"""The section `finetune`: which conversations are learnt from, how they are rendered, and what of them is learnt."""

from dataclasses import dataclass
from typing import Literal

from ling.config.fields import check_fields
from ling.errors import ConfigError

Format = Literal["messages", "openai", "sharegpt", "alpaca"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """Supervised fine-tuning: the data of `ling finetune`."""

    data: tuple[str, ...] = ()
    """Files or directories (jsonl, json, parquet); with `dataset_info`, names of data sets in it."""
    dataset_info: str | None = None
    """LLaMA-Factory's `dataset_info.json`, which says where each data set lies and how it is spelt."""
    format: Format = "messages"
    """Of `data` without `dataset_info`: the published messages, or LLaMA-Factory's formats with their default names."""
    max_samples: int = 0
    """Records that are read of each data set, from its beginning; 0: all."""
    thinking: Literal["off", "on", "auto"] = "off"
    """Ends the header of samples that do not say it themselves; auto: on where a rendered answer has reasoning."""
    default_system: str | None = None
    """System message of samples without one."""
    learn: Literal["answers", "last_turn", "last_answer"] = "answers"
    """All answers, those after the last question, or only the last one; each with its `<|role_end|>`."""
    end_of_text: bool = False
    """Append one learnt `<|endoftext|>` to each sample, as the published Megatron fine-tuning does."""
    system_newline: bool = False
    """Render a missing system message as an empty one, as the published Megatron fine-tuning does."""
    max_tokens: int = 0
    """Longest sample; 0: the sequence length."""
    too_long: Literal["skip", "truncate"] = "skip"
    """What becomes of longer samples: left out and reported, or cut at their end and counted."""
    packing: bool = True
    """Put several samples, isolated from each other, into a sequence; otherwise each has one of its own."""
    epochs: float = 1.0
    """Passes over the samples."""
    heldout_percent: float = 0.0
    """Share of the samples kept from training for evaluation, chosen by hash, so it never moves."""
    cache: str | None = None
    """Directory for the tokenised samples, made anew when data or settings change; None: they stay in memory."""
    workers: int = 0
    """Processes that tokenise; 0: this one. The result is the same for any number."""

    def __post_init__(self) -> None:
        check_fields(self, "finetune")
        for name in ("max_samples", "max_tokens", "workers"):
            if getattr(self, name) < 0:
                raise ConfigError(f"finetune.{name} must not be negative, got {getattr(self, name)}")
        if self.epochs <= 0:
            raise ConfigError(f"finetune.epochs must be positive, got {self.epochs}")
        if not 0 <= self.heldout_percent < 50:
            raise ConfigError(f"finetune.heldout_percent must lie in [0, 50), got {self.heldout_percent}")
        if self.dataset_info is not None and self.format != "messages":
            raise ConfigError(
                f"finetune.format {self.format} and finetune.dataset_info exclude each other: "
                "each entry of the latter has its own `formatting`"
            )
