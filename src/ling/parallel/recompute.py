"""Computing activations again in backward instead of keeping them.

The routing that counts is the one of the first pass: counts are outputs, and those of the second are thrown away.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ling.model import CausalLM
from ling.model.moe import SparseMoe
from ling.ops.linear import Weight
from ling.ops.moe import MixExperts, mix_experts


def recompute_block(block: Callable[..., Any], *arguments: Any) -> Any:
    """Run a block, keeping only its inputs; `run` of the model's forward."""
    return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)


def recompute_experts(model: CausalLM) -> None:
    """Let every sparse layer keep only the inputs of its routed experts; the router is not run again."""
    for module in model.modules():
        if isinstance(module, SparseMoe):
            module.mix = _Recomputed(module.mix or mix_experts)


class _Recomputed:
    def __init__(self, mix: MixExperts) -> None:
        self.mix = mix

    def __call__(self, x: Tensor, ids: Tensor, mix: Tensor, counts: Tensor, gate_up: Weight, down: Weight) -> Tensor:
        y: Tensor = checkpoint(
            self.mix, x, ids, mix, counts, gate_up, down, use_reentrant=False, preserve_rng_state=False
        )
        return y
