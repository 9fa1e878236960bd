"""Warm-up, stable, merge: checkpoints of one constant-rate run become one, in place of a learning-rate decay.

The merged model is sum c_j theta_j with weights that are not negative and sum to 1 (spec: training.md 9; arXiv
2507.17634). Seen from the oldest checkpoint, the i-th update after it is kept with weight w_i = c_i + ... + c_k, so
choosing the w_i along a decay curve and taking differences emulates that decay. Sums are in float32; one tensor of
each checkpoint is read at a time, so any number of them, however sharded, merges in the memory of a few tensors.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ling.checkpoint.names import Piece, published_pieces
from ling.checkpoint.pieces import HELD_STACKS, DcpPieces, PieceSource
from ling.config import ModelConfig, write_published
from ling.errors import CheckpointError, ConfigError
from ling.tokenizer.files import TOKENIZER

_CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "1-sqrt": lambda x: 1 - math.sqrt(x),
}
_IDS = ("eos_token_id", "pad_token_id")
"""None where a checkpoint came without its tokenizer, as Megatron's do."""
_NOT_OF_THE_MODEL = (
    "torch_dtype", "initializer_range", "mtp_loss_scaling_factor", "num_shared_experts",
    "moe_shared_expert_intermediate_size",
)  # fmt: skip
DECAYS = ("mean", *_CURVES)


def decay_weights(decay: str, count: int) -> list[float]:
    """Return the weights of `count` checkpoints, oldest first, whose merge acts like a decay over their span.

    The curve, 1 at the oldest checkpoint, is sampled at i / count. Its end, where it is 0, lies one interval behind the
    newest checkpoint, which would otherwise count for nothing; `linear` is then the plain mean.
    """
    if decay not in DECAYS:
        raise ConfigError(f"decay {decay} is not known; use {', '.join(DECAYS)}")
    if decay in ("mean", "linear"):
        return [1 / count] * count
    kept = [_CURVES[decay](i / count) for i in range(count)] + [0.0]
    return [now - following for now, following in itertools.pairwise(kept)]


def given_weights(weights: Sequence[float], count: int) -> list[float]:
    """Return explicit weights scaled to sum to 1; ConfigError if they are not one per checkpoint."""
    if len(weights) != count:
        raise ConfigError(f"{len(weights)} weights for {count} checkpoints; give one for each, oldest first")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not 0 < sum(weights) < math.inf:
        raise ConfigError(f"weights must be numbers of at least 0 with a finite sum above 0, got {_list(weights)}")
    return [w / sum(weights) for w in weights]


class MergedPieces:
    """Several checkpoints of one model, read as their weighted sum in float32."""

    def __init__(self, sources: Sequence[PieceSource], weights: Sequence[float]) -> None:
        """Raise CheckpointError if the checkpoints are not of one model, with one tokenizer.

        sources  oldest first; the newest one's tokenizer and card go along
        weights  one for each, summing to 1
        """
        assert len(sources) == len(weights), (len(sources), len(weights))
        self.sources = tuple(sources)
        self.shares: tuple[float, ...] = tuple(weights)
        self.directory = sources[-1].directory
        self.config = sources[-1].config
        self.kind = f"merge of {len(sources)} checkpoints, oldest first, with weights {_list(weights)}"
        self._stacks: dict[str, list[Piece]] = {}
        """Pieces that distributed checkpoints hold in one tensor; empty if there are none of those."""
        self._held: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        for source in sources[:-1]:
            _check_same_model(source, sources[-1])
        if any(isinstance(source, DcpPieces) for source in sources):
            for piece in published_pieces(self.config):
                if piece.expert is not None:
                    self._stacks.setdefault(piece.parameter, []).append(piece)

    @property
    def directories(self) -> tuple[Path, ...]:
        return tuple(directory for source in self.sources for directory in source.directories)

    def read(self, piece: Piece) -> Tensor:
        if piece.parameter not in self._stacks:
            return self._sum([piece])[piece.key]
        if piece.parameter not in self._held:
            while len(self._held) >= HELD_STACKS:
                self._held.popitem(last=False)
            self._held[piece.parameter] = self._sum(self._stacks[piece.parameter])
        self._held.move_to_end(piece.parameter)
        return self._held[piece.parameter][piece.key]

    def _sum(self, pieces: list[Piece]) -> dict[str, Tensor]:
        """Return weighted sums by key. One source at a time: each may have to read its whole stack of experts."""
        # As steps away from the newest: differences of neighbours are small and exact, and equal values stay equal.
        newest = {piece.key: self.sources[-1].read(piece) for piece in pieces}
        total = {key: torch.zeros_like(values, dtype=torch.float32) for key, values in newest.items()}
        for source, weight in zip(self.sources[:-1], self.shares):
            if weight:
                for piece in pieces:
                    step = source.read(piece).float() - newest[piece.key].float()
                    total[piece.key].add_(step, alpha=weight)
                source.release()
        self.sources[-1].release()
        return {key: total[key].add_(values) for key, values in newest.items()}

    def release(self) -> None:
        self._held.clear()

    def dtype(self, piece: Piece) -> torch.dtype:
        return torch.float32

    def reopen(self) -> "MergedPieces":
        return MergedPieces([source.reopen() for source in self.sources], self.shares)

    def tokenizer_files(self) -> list[Path]:
        return self.sources[-1].tokenizer_files()


def _check_same_model(one: PieceSource, other: PieceSource) -> None:
    mine, theirs = _comparable(one.config), _comparable(other.config)
    unknown = {key for key in _IDS if mine[key] is None or theirs[key] is None}
    if different := [key for key in mine if mine[key] != theirs[key] and key not in unknown]:
        told = ", ".join(f"{key} {mine[key]} and {theirs[key]}" for key in different[:3])
        raise CheckpointError(f"{one.directory} and {other.directory} are different models: {told}")
    first, second = _tokenizer(one), _tokenizer(other)
    if first is not None and second is not None and first != second:
        raise CheckpointError(f"{one.directory} and {other.directory} have different tokenizers; their ids mean "
                              "different words")  # fmt: skip


def _comparable(config: ModelConfig) -> dict[str, object]:
    """Return what makes a model another one, however its configuration spells it."""
    tree = {key: value for key, value in write_published(config).items() if key not in _NOT_OF_THE_MODEL}
    return tree | {"shared_expert_dim": config.shared_expert_dim}


def _tokenizer(source: PieceSource) -> bytes | None:
    return next((file.read_bytes() for file in source.tokenizer_files() if file.name == TOKENIZER), None)


def _list(weights: Sequence[float]) -> str:
    return ", ".join(f"{w:.4g}" for w in weights)
