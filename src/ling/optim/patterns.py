"""Which parameters a recipe means: names with `*`, or words for the usual kinds."""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch

from ling.config.optimizer import read_multiplier
from ling.errors import ConfigError
from ling.model import CausalLM

EXPERT_BIAS = ".gate.expert_bias"
KINDS = {
    "embeddings": "model.word_embeddings.*",
    "head": "lm_head.*",
    "router": "*.gate.weight",
    "experts": "*.mlp.experts.*",
    "norms": "*norm.weight",
    "biases": "*.bias",
    "expert_bias": f"*{EXPERT_BIAS}",
}
"""Words for patterns. The expert bias is no parameter: nothing but `freeze` knows it."""


def matching(names: Iterable[str], pattern: str, key: str) -> list[str]:
    """Return the names that a pattern of the recipe's `key` means; ConfigError if there are none."""
    names = list(names)
    found = [name for name in names if fnmatchcase(name, KINDS.get(pattern, pattern))]
    if not found:
        near = difflib.get_close_matches(pattern, [*KINDS, *names], 1)
        hint = f"did you mean {near[0]}?" if near else f"words for kinds: {', '.join(KINDS)}"
        raise ConfigError(f"{key} has {pattern!r}, but this model has no parameter of that name; {hint}")
    return found


def multiplier_of(names: Sequence[str], entries: Iterable[str]) -> dict[str, float]:
    """Return the learning-rate factor of each name; ConfigError if two entries disagree about one."""
    given: dict[str, tuple[float, str]] = {}
    for entry in entries:
        pattern, factor = read_multiplier(entry)
        for name in matching(names, pattern, "optim.lr_multipliers"):
            if name in given and given[name][0] != factor:
                raise ConfigError(f"optim.lr_multipliers: {given[name][1]!r} and {entry!r} both mean {name}; keep one")
            given[name] = (factor, entry)
    return {name: given[name][0] if name in given else 1.0 for name in names}


def freeze_(model: CausalLM, patterns: Sequence[str]) -> frozenset[int]:
    """Switch gradients off for parameters that `optim.freeze` means; return the layers whose expert bias it means.

    Those layers are for `update_expert_biases`. Doing it again changes nothing. What other processes hold is known by
    name, so that a pattern means the same on all of them.
    """
    parameters = dict(model.named_parameters())
    biases = [name for name, _ in model.named_buffers() if name.endswith(EXPERT_BIAS)]
    names = [*parameters, *biases, *model.elsewhere]
    frozen = {name for pattern in patterns for name in matching(names, pattern, "optim.freeze")}
    for name in frozen & parameters.keys():
        parameters[name].requires_grad_(False)
    if all(name in frozen for name in names if not name.endswith(EXPERT_BIAS)):
        raise ConfigError("optim.freeze leaves no parameter to train; take a pattern away")
    return frozenset(int(n.split(".layers.")[1].split(".")[0]) for n in frozen if n.endswith(EXPERT_BIAS))


def is_matrix_of_a_block(name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon takes a parameter: a matrix, or a stack of them, other than embedding, head and router."""
    others = ("embeddings", "head", "router")
    return parameter.dim() >= 2 and not any(fnmatchcase(name, KINDS[kind]) for kind in others)
