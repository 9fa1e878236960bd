"""Where a greedy answer is certain: another summation order may choose the other token of two with equal logits."""

import torch

from ling.model import CausalLM
from ling.model.batch import pack


@torch.no_grad()
def certain(model: CausalLM, prompt: list[int], answer: list[int], apart: float) -> int:
    """Return how many tokens of `answer` come before the first whose logit lies less than `apart` above the second."""
    rows, positions, batch = pack([prompt + answer])
    hidden = model(rows, positions, batch).hidden[len(prompt) - 1 : -1]
    first, second = model.logits(hidden).topk(2).values.unbind(-1)
    far = (first - second).tolist()
    return next((i for i, gap in enumerate(far) if gap < apart), len(answer))
