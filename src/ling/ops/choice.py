"""One token per row of logits: the most likely one, or one drawn by Gumbel-max with noise that is a function.

The noise of a key and a token id depends on nothing else, so a choice is the same in any batch, as often as it is made.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ling.ops.backend import op
from ling.ops.noise import mix, signed_int

_VECTOR = 64
"""A multiple of what any processor computes at once."""
_NOISE_RANGE = 20.5
"""Gumbel noise of 24 bits lies between -2.9 and 17.4."""


@op(cpu="ling.ops.cpu.choice")
def choose_tokens(logits: Tensor, temperatures: Sequence[float], keys: Sequence[int]) -> list[int]:
    """Choose a token per row.

    logits        (N, V) float32; -inf for what cannot be chosen
    temperatures  per row; 0: the first of the most likely, otherwise drawn from softmax(logits / temperature)
    keys          per row, 64 bits that the noise is a function of; what they are in a greedy row does not matter
    """
    chosen = logits.argmax(1)
    drawn = [i for i, temperature in enumerate(temperatures) if temperature]
    if not drawn:
        return chosen.tolist()
    own = torch.tensor([temperatures[i] for i in drawn], dtype=torch.float32, device=logits.device)
    scaled = (logits if len(drawn) == len(logits) else logits[drawn]) / own[:, None]
    # With little noise on the most likely token and much on another, one below this cannot win.
    rows, ids = (scaled >= scaled.amax(1, keepdim=True) - _NOISE_RANGE).nonzero(as_tuple=True)
    signed = torch.tensor([signed_int(keys[i]) for i in drawn], device=logits.device)
    noisy = torch.full_like(scaled, -torch.inf)
    noisy[rows, ids] = scaled[rows, ids] + gumbel_noise(signed[rows], ids)
    chosen[drawn] = noisy.argmax(1)
    return chosen.tolist()


def gumbel_noise(keys: Tensor, ids: Tensor) -> Tensor:
    """Return float32 Gumbel noise for each pair of key and token id, (n,) int64 each.

    Padded to whole vectors: the end of an array is rounded by other instructions.
    """
    count = len(ids)
    padding = -count % _VECTOR
    bits = mix(torch.cat([keys ^ ids, ids.new_zeros(padding)]))
    uniform = ((bits >> 40) & 0xFFFFFF).to(torch.float64).add_(0.5).div_(1 << 24)  # 24 bits, never 0 or 1
    return uniform.log_().neg_().log_().neg_().to(torch.float32)[:count]
