"""The sections of a recipe beside the model: data, optimizer, loop."""

from dataclasses import dataclass, field
from typing import Literal

from ling.config.fields import check_fields, shown
from ling.config.fp8 import Fp8Config
from ling.config.model import DType
from ling.config.optimizer import BatchRampConfig, MuonConfig, SkipConfig, read_multiplier
from ling.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What a run reads: token files, or else the books and dialogues in the package."""

    files: tuple[str, ...] = ()
    """Token files (`ling data prepare`, or Megatron's), each PATH or PATH=WEIGHT: its share of the sequences; without
    weights, in proportion to their sizes."""
    packing: Literal["documents", "stream"] = "documents"
    """documents: none sees another in its sequence; stream: they follow each other as one text, as in the published
    trainer."""
    dialogue_fraction: float = 0.8
    """Share of a step's tokens for generated dialogues, which they do not quite fill; the rest are pieces of books."""
    dialogue_level: int = 1
    """1: what minutes of training can learn; 2: larger numbers and more tools as well."""
    conversation_fraction: float = 0.3
    """Share of the dialogues that are followed by up to three more, as one conversation."""
    max_document_tokens: int = 192
    """Longer text is cut into pieces of this many tokens; longer dialogues are left out."""
    heldout_percent: float = 1.0
    """Share kept from training: of the books' documents, chosen by hash; of token files, the end."""

    def __post_init__(self) -> None:
        check_fields(self, "data")
        for name in ("dialogue_fraction", "conversation_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"data.{name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.dialogue_level not in (1, 2):
            raise ConfigError(f"data.dialogue_level must be 1 or 2, got {self.dialogue_level}")
        if self.max_document_tokens < 16:
            raise ConfigError(f"data.max_document_tokens must be at least 16, got {self.max_document_tokens}")
        weights = [read_weighted(entry)[1] for entry in self.files]
        if any(w is None for w in weights) and any(w is not None for w in weights):
            raise ConfigError("data.files gives weights to some files and not to others; give all of them one, or none")
        if not 0 < self.heldout_percent < 50:
            raise ConfigError(f"data.heldout_percent must lie between 0 and 50, got {self.heldout_percent}")


def read_weighted(entry: str) -> tuple[str, float | None]:
    """Return (path, weight) of an entry of `data.files`, the weight None where there is none."""
    path, equals, weight = entry.rpartition("=")
    if not equals:
        return entry, None
    try:
        value = float(weight)
    except ValueError:
        value = -1.0
    if not path or not 0 < value < float("inf"):
        raise ConfigError(f"data.files has {shown(entry)}; an entry is PATH or PATH=WEIGHT with a positive weight")
    return path, value


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """AdamW or Muon, the expert-bias rule, the learning rate: constant after warm-up unless a schedule is chosen."""

    method: Literal["adamw", "muon"] = "adamw"
    """muon: for the matrices between embedding and head, each expert's among them; AdamW for all else."""
    lr: float = 3e-4
    """Peak learning rate, reached after `warmup_steps`."""
    warmup_steps: int = 2000
    schedule: Literal["constant", "wsd", "cosine", "linear"] = "constant"
    """After warm-up: constant (averaging snapshots replaces a decay); wsd, constant and a decay at the end (warm-up,
    stable, decay); or falling from warm-up to the last step."""
    end_lr: float = 0.0
    """Learning rate of the last step, where it falls."""
    decay_steps: int = 0
    """Of wsd: steps of the decay."""
    decay: Literal["linear", "cosine", "1-sqrt"] = "linear"
    """Of wsd: its form."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Applied to matrices only: not to norms, biases or the embedding's padding row."""
    in_backward: bool = False
    """Update a layer as soon as backward has made its gradients, which are then forgotten: no more than one layer's are
    ever there. Of several microbatches each puts its gradients into the moments at once (AdamA, arXiv 2305.19982)."""
    clipping: Literal["global", "lagged", "update"] = "global"
    """global: gradients are scaled to `clip_grad_norm` together; lagged: by what the step before would have needed;
    update: AdamW's rate for a tensor is divided by the root mean square of gradient over root of second moment,
    where that is above 1 (arXiv 2304.13013), without regard to `clip_grad_norm`."""
    clip_grad_norm: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    expert_bias_update_rate: float = 1e-3
    """u of the zero-mean sign rule (spec: model.md 6); 0 freezes the bias."""
    router_z_loss: float = 3.5e-6
    """Weight of the mean squared log-sum-exp of the router logits, summed over layers."""
    lr_multipliers: tuple[str, ...] = ()
    """Entries `pattern=factor`: parameters whose learning rate is that much of the schedule's. A pattern is a name with
    `*`, or embeddings, head, router, experts, norms, biases."""
    freeze: tuple[str, ...] = ()
    """Patterns of parameters that stay as they are. expert_bias stands for the routers' biases."""
    master_weights: bool = False
    """Keep a float32 copy of each parameter of lower precision in the optimizer, so that small updates are not lost."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """What weights are kept in between steps. With bfloat16 so are their gradients, and products as well (routers stay
    float32); not with tensor or pipeline ranks."""
    weight_rounding: Literal["stochastic", "nearest"] = "stochastic"
    """How bfloat16 weights are rounded. To nearest, updates below about 1/500 of a weight are lost."""
    rounding_seed: int = 0
    """Of the noise that weights and moments are rounded by: a function of it, the step, the name and the place."""
    moments: Literal["float32", "bfloat16", "fp8", "dynamic8"] = "float32"
    """What moments of matrices are kept in. fp8: E4M3 with a scale per 256, of squares their root; dynamic8: the
    published 8-bit map, rounded to nearest. Anything but float32 does without tensor and pipeline ranks."""
    muon: MuonConfig = field(default_factory=MuonConfig)
    skip: SkipConfig = field(default_factory=SkipConfig)
    batch_ramp: BatchRampConfig = field(default_factory=BatchRampConfig)

    def __post_init__(self) -> None:
        check_fields(self, "optim")
        for name in ("lr", "eps"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"optim.{name} must be positive, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optim.{name} must lie in [0, 1), got {getattr(self, name)}")
        for name in (
            "warmup_steps",
            "end_lr",
            "decay_steps",
            "weight_decay",
            "clip_grad_norm",
            "expert_bias_update_rate",
            "router_z_loss",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(f"optim.{name} must not be negative, got {getattr(self, name)}")
        if self.rounding_seed < 0:
            raise ConfigError(f"optim.rounding_seed must not be negative, got {self.rounding_seed}")
        if self.end_lr > self.lr:
            raise ConfigError(f"optim.end_lr {self.end_lr:g} is above optim.lr {self.lr:g}")
        if (self.schedule == "wsd") != bool(self.decay_steps):
            raise ConfigError("optim.decay_steps and optim.schedule=wsd go together; set both, or neither")
        for entry in self.lr_multipliers:
            read_multiplier(entry)
        self._check_in_backward()

    def _check_in_backward(self) -> None:
        if self.clipping == "lagged" and not self.in_backward:
            raise ConfigError("optim.clipping lagged is for optim.in_backward; use global, which knows the whole norm")
        if not self.in_backward:
            return
        if self.clipping == "global" and self.clip_grad_norm:
            raise ConfigError(
                "optim.in_backward updates layers before the norm of the whole gradient is known; use "
                "optim.clipping=lagged or update, or optim.clip_grad_norm=0"
            )
        muon = {"muon.momentum": self.muon.momentum} if self.method == "muon" else {}
        for name, decay in {"beta1": self.beta1, "beta2": self.beta2, **muon}.items():
            if not decay:
                raise ConfigError(f"optim.in_backward gathers gradients in moments; optim.{name} must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How long, how large, and what is written on the way."""

    seed: int = 0
    steps: int = 1000
    """Optimizer updates."""
    tokens_per_step: int = 4096
    """With the data in the package: upper bound of tokens in one update, which whole documents are packed into."""
    sequence_length: int = 512
    """Tokens of a sequence: a window of token files, or what whole conversations are packed into. The data in the
    package has none."""
    micro_batch_size: int = 1
    """Sequences of a microbatch, which go through the network together."""
    global_batch_size: int = 8
    """Sequences of a step: a whole number of microbatches."""
    precision: Literal["float32", "bfloat16", "fp8"] = "float32"
    """What products are computed in. With bfloat16, weights, moments, routers, and gradients where they are added up,
    stay float32; a block's weights are rounded when it runs. fp8: the blocks' linear maps and experts have FP8
    operands, all else is as with bfloat16; not with tensor or pipeline ranks."""
    fp8: Fp8Config = field(default_factory=Fp8Config)
    checkpoint_every: int = 500
    """Steps between resumable checkpoints."""
    average_last: int = 8
    """Snapshots averaged into the final weights (warm-up, stable, merge); 0 keeps the last weights."""
    average_every: int = 50
    """Steps between those snapshots."""
    max_minutes: float = 0.0
    """Stop, with everything written, after this wall time; 0: no limit."""

    @property
    def compute_dtype(self) -> DType:
        """What activations are."""
        return "float32" if self.precision == "float32" else "bfloat16"

    def __post_init__(self) -> None:
        check_fields(self, "train")
        for name in (
            "steps", "tokens_per_step", "sequence_length", "micro_batch_size", "global_batch_size", "checkpoint_every",
            "average_every",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        if self.global_batch_size % self.micro_batch_size:
            raise ConfigError(
                f"train.global_batch_size {self.global_batch_size} is no multiple of train.micro_batch_size "
                f"{self.micro_batch_size}"
            )
        for name in ("average_last", "max_minutes", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name} must not be negative, got {getattr(self, name)}")
