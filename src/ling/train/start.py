"""The weights a run begins with, out of any checkpoint."""

import logging
from dataclasses import asdict

import torch
from torch.distributed.tensor import DTensor

from ling.checkpoint.names import Piece, published_pieces
from ling.checkpoint.pieces import PieceSource
from ling.config import ModelConfig
from ling.errors import CheckpointError
from ling.model import CausalLM
from ling.parallel.build import copy_part

logger = logging.getLogger(__name__)

_FREE = {
    "max_position_embeddings", "rope_scaling", "rope_theta", "mtp_loss_scaling_factor", "initializer_range",
    "eos_token_id", "torch_dtype", "num_nextn_predict_layers", "routed_scaling_factor",
}  # fmt: skip
"""What a run may change about a network without losing its weights."""


@torch.no_grad()
def load_start(model: CausalLM, source: PieceSource) -> list[str]:
    """Copy the weights of `source` into `model`; return a line for each thing that differs.

    MTP layers that the checkpoint lacks keep the values they have; those that `model` lacks are left out.
    Raises CheckpointError that names the first size in which the two networks differ.
    """
    wanted, found = asdict(model.config), asdict(source.config)
    for key in wanted:
        if key not in _FREE and wanted[key] != found[key] and not _same_width(key, model.config, source.config):
            raise CheckpointError(
                f"{source.directory} has {key} {found[key]}, the recipe {wanted[key]}; "
                f"leave the model to the checkpoint, or set model.{key}={found[key]}"
            )
    notes = [
        f"{key}: {found[key]} in the checkpoint, {wanted[key]} here" for key in wanted if wanted[key] != found[key]
    ]
    held = {piece.key for piece in published_pieces(source.config)}
    state, new = model.state_dict(), set()
    pieces: dict[str, list[Piece]] = {}
    for piece in published_pieces(model.config):
        if piece.key not in held:
            new.add(piece.layer)
        elif piece.parameter in state:
            pieces.setdefault(piece.parameter, []).append(piece)
    for name, parts in pieces.items():
        target = state[name]
        whole = torch.empty(target.shape, dtype=target.dtype) if isinstance(target, DTensor) else target
        for piece in parts:
            piece.part_of(whole).copy_(source.read(piece))
        if whole is not target:
            copy_part(target, whole)
    if new:
        notes.append(f"MTP layers that the checkpoint lacks begin with new weights: {', '.join(map(str, sorted(new)))}")
    return notes


def _same_width(key: str, mine: ModelConfig, other: ModelConfig) -> bool:
    """Whether two spellings mean the same: the shared expert's width has two factors, a rotation may be spelt out."""
    if key in ("num_shared_experts", "moe_shared_expert_intermediate_size"):
        return mine.shared_expert_dim == other.shared_expert_dim
    return key == "rotary_dim" and mine.rotated_dim == other.rotated_dim
