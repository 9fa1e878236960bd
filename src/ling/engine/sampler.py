"""Choosing tokens: Gumbel-max with noise that is a function, not a stream.

The noise of (seed, answer, position, token id) depends on nothing else: not on the batch, not on what was sampled
before, not on whether a token is being drafted or verified. So the same seed gives the same text, and a draft that
uses the same noise agrees with its target wherever their distributions agree.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ling.engine.request import Logprob, SamplingParams, TokenLogprobs
from ling.ops.choice import choose_tokens
from ling.ops.noise import MASK64, mix_int
from ling.tokenizer import Tokenizer

_NUCLEUS = 1024
"""Most likely tokens that are ranked before all of them are."""


class Row(NamedTuple):
    """What a choice depends on beside its logits."""

    params: SamplingParams
    seed: int
    answer: int
    """Which answer to the prompt: each has noise of its own."""
    tokens: Sequence[int]
    """Of the sequence so far, prompt included; not copied."""
    num_prompt: int
    drafts: Sequence[int] = ()
    """That stand between them and the token to choose."""
    allowed: Tensor | None = None
    """(V,) bool, by a grammar; None: all."""
    barred: tuple[int, ...] = ()
    """Token ids that cannot be chosen: stop ids of an answer that is too short."""

    @property
    def position(self) -> int:
        """Index that the chosen token will have in its sequence."""
        return len(self.tokens) + len(self.drafts)

    @property
    def is_free(self) -> bool:
        """Whether nothing but the logits and the temperature decides."""
        return self.params.is_free and self.allowed is None and not self.barred

    def noise_key(self, ahead: int = 0) -> int:
        """Return the key of the token to choose, or of one so many behind it; 0: a greedy choice has no noise."""
        return noise_key(self.seed, self.answer, self.position + ahead) if self.params.temperature else 0


def sample(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """Choose one token per row; logits (N, V) float32."""
    if not all(row.is_free for row in rows):
        logits = torch.stack([own if row.is_free else _leave(own, row) for own, row in zip(logits, rows, strict=True)])
    return choose_tokens(logits, [row.params.temperature for row in rows], [row.noise_key() for row in rows])


def _leave(logits: Tensor, row: Row) -> Tensor:
    """Return (V,) logits of what may be chosen, -inf elsewhere."""
    steered = _steer(logits, row)
    return _keep_likely(steered, row.params) if row.params.temperature else steered


def _steer(logits: Tensor, row: Row) -> Tensor:
    """Apply bias, then penalties, then what is not allowed.

    Each row counts its own drafts, so verifying chooses as plain decoding does.
    """
    params = row.params
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=logits.device)
        bias = torch.tensor(list(params.logit_bias.values()), dtype=logits.dtype, device=logits.device)
        logits = logits.index_add(0, ids, bias)
    if params.counts_tokens:
        logits = _penalise(logits, row)
    if row.allowed is not None:
        logits = logits.masked_fill(~row.allowed, -torch.inf)
    if not row.barred:
        return logits
    longer = logits.index_fill(0, torch.tensor(row.barred, device=logits.device), -torch.inf)
    # Where a grammar allows nothing but the end, it ends: a form counts more than a length.
    return longer if row.allowed is None or bool((longer > -torch.inf).any()) else logits


def _penalise(logits: Tensor, row: Row) -> Tensor:
    """Change the logits of tokens that occur, and no others: a vocabulary is a hundred times as long as most texts."""
    params, device = row.params, logits.device
    logits = logits.clone()
    answer = torch.tensor([*row.tokens[row.num_prompt :], *row.drafts], dtype=torch.int64, device=device)
    if params.repetition_penalty != 1:
        prompt = torch.tensor(row.tokens[: row.num_prompt], dtype=torch.int64, device=device)
        seen = torch.cat([prompt, answer])
        own = logits[seen]
        logits[seen] = torch.where(own > 0, own / params.repetition_penalty, own * params.repetition_penalty)
    chosen, counts = answer.unique(return_counts=True)
    logits[chosen] = logits[chosen] - params.frequency_penalty * counts.to(logits.dtype) - params.presence_penalty
    return logits


def _keep_likely(logits: Tensor, params: SamplingParams) -> Tensor:
    """Reduce (V,) to what min-p, top-k and top-p leave; the rest becomes -inf."""
    scaled = logits / params.temperature
    kept = torch.ones_like(logits, dtype=torch.bool)
    if params.min_p:
        kept &= scaled >= scaled.max() + math.log(params.min_p)
    if 0 < params.top_k < len(logits):  # of tokens as likely as the last one all stay
        scaled = scaled.masked_fill(~kept, -torch.inf)
        kept &= scaled >= scaled.topk(params.top_k).values[-1]
    if params.top_p < 1:
        kept = _nucleus(scaled.masked_fill(~kept, -torch.inf), params.top_p)
    return logits.masked_fill(~kept, -torch.inf)


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Return (V,) bool: the most likely tokens, as many as fill `top_p`."""
    shares = logits.softmax(0)
    ranked, ids = shares.topk(min(_NUCLEUS, len(shares)))
    if ranked.sum() < top_p and len(ranked) < len(shares):
        ranked, ids = shares.sort(descending=True, stable=True)
    kept = ranked.cumsum(0) - ranked < top_p  # a token goes if those before it fill top_p already
    kept &= ranked > 0
    kept[0] = True  # a top_p that float32 rounds to 0 means the most likely token
    return torch.zeros_like(logits, dtype=torch.bool).index_fill_(0, ids[kept], True)


def logprobs_of(logits: Tensor, tokens: Sequence[int], most: int, tokenizer: Tokenizer) -> list[TokenLogprobs]:
    """Return, per row of logits (N, V), the log-probabilities of its token and of the `most` most likely ones."""
    values = logits.log_softmax(1)
    ids = torch.tensor(list(tokens), device=logits.device)[:, None]
    own = values.gather(1, ids)
    ranks = (values > own).sum(1) + 1
    best, best_ids = values.topk(most, dim=1) if most else (own[:, :0], ids[:, :0])
    out = []
    for token, value, rank, others, other_ids in zip(
        tokens, own[:, 0].tolist(), ranks.tolist(), best.tolist(), best_ids.tolist(), strict=True
    ):
        entry = {token: Logprob(value, rank, tokenizer.decode([token]))}
        for place, (other, logprob) in enumerate(zip(other_ids, others), start=1):
            entry.setdefault(other, Logprob(logprob, place, tokenizer.decode([other])))
        out.append(entry)
    return out


def noise_key(seed: int, answer: int, position: int) -> int:
    """Return what noise is a function of, beside the token."""
    return mix_int(mix_int(mix_int(seed & MASK64) ^ (answer & MASK64)) ^ (position & MASK64))


def derive_seed(seed: int, count: int) -> int:
    """Return a seed for the `count`-th request of an engine with `seed`."""
    return mix_int(mix_int(seed & MASK64) ^ count) >> 1
