"""Published tensors, one per expert, and the stacked ones that a model holds: there and back by the one key table."""

import torch
from torch import Tensor, nn

from ling.checkpoint.names import published_pieces
from ling.config.model import ModelConfig
from ling.errors import CheckpointError
from ling.ops.fp8 import dequantize_e4m3_block


@torch.no_grad()
def to_model(published: dict[str, Tensor], model: nn.Module, config: ModelConfig) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under the model's names; FP8 blocks become values.

    published  emptied on the way; what has no place in `model` is handed through, stacked experts among it
    model      says shapes and dtypes, and may lie on the meta device
    Raises CheckpointError that names the first tensor that is missing or misshapen.
    """
    places = model.state_dict()
    state: dict[str, Tensor] = {}
    missing = []
    for piece in published_pieces(config):
        if piece.key not in published:
            if piece.parameter not in published:
                missing.append(piece.key)
            continue
        values, scale = published.pop(piece.key), published.pop(piece.scale_key, None)
        place = places[piece.parameter]
        if scale is not None:
            values = dequantize_e4m3_block(values, scale, place.dtype)
        if piece.expert is None:
            state[piece.parameter] = values
            continue
        if tuple(values.shape) != piece.shape:
            raise CheckpointError(f"tensor {piece.key} is {tuple(values.shape)}, config.json means {piece.shape}")
        if piece.parameter not in state:
            state[piece.parameter] = torch.empty(place.shape, dtype=place.dtype)
        piece.part_of(state[piece.parameter]).copy_(values)
    if missing:
        more = f" and {len(missing) - 1} more tensors" if len(missing) > 1 else ""
        raise CheckpointError(f"the checkpoint lacks {missing[0]}{more}, which its config.json promises")
    return {**state, **published}


def to_published(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return a model's tensors under their published names; experts are views of the stacks."""
    pieces = (piece for piece in published_pieces(config) if piece.parameter in state)
    return {piece.key: piece.part_of(state[piece.parameter]) for piece in pieces}


@torch.no_grad()
def take_experts(state: dict[str, Tensor], prefix: str, model: nn.Module, config: ModelConfig) -> None:
    """Copy published experts in `state` into the stacks of `model`, and put the stacks in their place.

    So `load_state_dict` reads published files too, shard by shard, whichever experts a shard holds.
    """
    places: dict[str, Tensor] = {}
    for piece in published_pieces(config):
        if piece.expert is None or prefix + piece.key not in state:
            continue
        places = places or model.state_dict()
        piece.part_of(places[piece.parameter]).copy_(state.pop(prefix + piece.key))
        state[prefix + piece.parameter] = places[piece.parameter]
