"""Balance without an auxiliary loss: after each step, lift the bias of quiet experts and lower that of busy ones.

Zero-mean sign rule of the published recipe (spec: model.md 6; arXiv 2408.15664):

    sign_e = sign(mean(n) - n_e);   b_e += u * (sign_e - mean(sign))

Counts are those of one optimizer step: summed over microbatches and data ranks, each token counted once.
"""

from collections.abc import Container, Mapping

import torch
from torch import Tensor

from ling.model import CausalLM
from ling.model.moe import SparseMoe


@torch.no_grad()
def step_bias_(expert_bias: Tensor, counts: Tensor, rate: float) -> None:
    """Update one router's bias (E,) float32 in place from its token counts (E,)."""
    assert expert_bias.dtype == torch.float32, expert_bias.dtype
    load = counts.to(torch.float32)
    sign = torch.sign(load.mean() - load)
    expert_bias.add_(sign - sign.mean(), alpha=rate)


def update_expert_biases(
    model: CausalLM, counts: Mapping[int, Tensor], rate: float, frozen: Container[int] = ()
) -> None:
    """Apply the rule to every stored layer in `counts`; a rate of 0 leaves all biases as they are.

    counts  by layer, (E,) tokens of the whole optimizer step
    frozen  layers whose bias stays, as `freeze_` gives them
    """
    if rate == 0:
        return
    for layer, layer_counts in counts.items():
        moe = getattr(model.model.layers[layer], "mlp", None)
        if layer in frozen or moe is None:  # or another process has the layer
            continue
        assert isinstance(moe, SparseMoe), layer
        if moe.gate.expert_bias is not None:
            step_bias_(moe.gate.expert_bias, layer_counts, rate)
