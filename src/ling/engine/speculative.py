"""Drafting with the MTP layer (spec: serving.md 5).

After the main model has run over slots a..b and the token behind b is known, the MTP layer runs over the same slots
with the tokens shifted by one and the main model's true hidden states; its last slot proposes the next token. Further
drafts feed the layer its own output. Rejected drafts leave stale cache entries, which the next pass overwrites.
"""

import torch
from torch import Tensor

from ling.engine.request import Sequence
from ling.engine.runner import Runner
from ling.engine.sampler import Row, sample


def propose(runner: Runner, sequences: list[Sequence], hiddens: list[Tensor], num_drafts: int) -> None:
    """Set `drafts` of each sequence.

    hiddens  per sequence (n, H), the main model's states of its cached slots from `num_drafted_slots` on
    """
    starts = [s.num_drafted_slots for s in sequences]
    ahead = [s.tokens[start + 1 : start + 1 + len(h)] for s, start, h in zip(sequences, starts, hiddens)]
    assert all(len(a) == len(h) for a, h in zip(ahead, hiddens)), [len(a) for a in ahead]
    hidden = torch.cat(hiddens)
    for s, h in zip(sequences, hiddens):
        s.num_drafted_slots += len(h)
    drafts: list[list[int]] = [[] for _ in sequences]
    for _ in range(num_drafts):
        out = runner.draft(sequences, starts, ahead, hidden)
        last = torch.tensor([len(a) for a in ahead], device=out.device).cumsum(0) - 1
        hidden = out[last]
        rows = [Row(s.params, s.tokens, s.num_prompt, own) for s, own in zip(sequences, drafts)]
        proposed = sample(runner.logits(hidden), rows)
        for own, token in zip(drafts, proposed):
            own.append(token)
        starts = [start + len(a) for start, a in zip(starts, ahead)]
        ahead = [[token] for token in proposed]
    for s, own in zip(sequences, drafts):
        s.drafts = tuple(own[: max(0, s.max_new - len(s.generated) - 1)])


def count_accepted(drafts: tuple[int, ...], chosen: list[int]) -> int:
    """Return how many drafts the main model would have chosen itself, counted from the first."""
    accepted = 0
    while accepted < len(drafts) and drafts[accepted] == chosen[accepted]:
        accepted += 1
    return accepted
