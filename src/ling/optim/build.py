"""The optimizer of a recipe, and its state as a checkpoint holds it."""

from collections import defaultdict

import torch
from torch import Tensor, nn

from ling.config.training import OptimConfig
from ling.model import CausalLM
from ling.optim.muon import FullMatrix, row_parts
from ling.optim.muon_adamw import ADAMW, MUON, MuonAdamW
from ling.optim.patterns import EXPERT_BIAS, freeze_, is_matrix_of_a_block, multiplier_of
from ling.optim.sharding import through_full_matrix


def build_optimizer(model: CausalLM, optim: OptimConfig, full_matrix: FullMatrix = through_full_matrix) -> MuonAdamW:
    """Return the optimizer over what `optim.freeze` leaves to train.

    A group for each method, weight decay (matrices have it; norms and biases not) and learning-rate factor. With
    `optim.master_weights` the weights must be in place already: the masters begin as their copies.

    full_matrix  how Muon sees the whole of a matrix that ranks hold parts of
    Raises ConfigError if a pattern means no parameter.
    """
    freeze_(model, optim.freeze)
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    everywhere = [
        *(name for name, _ in model.named_parameters()),
        *(n for n in model.elsewhere if not n.endswith(EXPERT_BIAS)),
    ]
    multipliers = multiplier_of(everywhere, optim.lr_multipliers)
    members: dict[tuple[bool, bool, float], list[Tensor]] = defaultdict(list)
    parts: dict[Tensor, tuple[int, ...]] = {}
    for name, parameter in names.items():
        uses_muon = optim.method == MUON and is_matrix_of_a_block(name, parameter)
        if uses_muon:
            parts[parameter] = row_parts(name, parameter.shape[-2], model.config)
        members[uses_muon, parameter.dim() >= 2, multipliers[name]].append(parameter)
    groups = [
        {
            "params": members[key],
            "method": MUON if key[0] else ADAMW,
            "weight_decay": optim.weight_decay if key[1] else 0.0,
            "lr_multiplier": key[2],
        }
        for key in sorted(members, reverse=True)
    ]
    groups = groups or [{"params": [], "method": ADAMW, "weight_decay": 0.0, "lr_multiplier": 1.0}]  # all are frozen
    owners: dict[Tensor, str] = {parameter: name for name, parameter in names.items()}
    return MuonAdamW(groups, optim, names=owners, parts=parts, still_rows=_still_rows(model), full_matrix=full_matrix)


def _still_rows(model: CausalLM) -> dict[Tensor, int]:
    """Return the embedding's padding row. A tied head gives that row gradients, so that it is as any other."""
    padding = model.config.pad_token_id
    weight = model.model.word_embeddings.weight
    is_still = isinstance(weight, nn.Parameter) and not model.config.tie_word_embeddings
    return {weight: padding} if is_still and padding is not None else {}


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of each group: the schedule's, times the group's factor if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_multiplier", 1.0)


def state_tensors(model: CausalLM, optimizer: MuonAdamW) -> dict[str, Tensor]:
    """Return every tensor of the optimizer as `optim/PARAMETER/KEY`; reading into them restores it."""
    return {
        f"optim/{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
