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
from ling.ops.noise import MASK64, mix, mix_int, signed_int
from ling.tokenizer import Tokenizer

_VECTOR = 64
"""A multiple of what any processor computes at once."""
_NUCLEUS = 1024
"""Most likely tokens that are ranked before all of them are."""
_NOISE_RANGE = 20.5
"""Gumbel noise of 24 bits lies between -2.9 and 17.4."""


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
    def is_plain(self) -> bool:
        return self.params.is_plain_greedy and self.allowed is None


def sample(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """Choose one token per row; logits (N, V) float32."""
    if all(row.is_plain for row in rows):
        return logits.argmax(1).tolist()
    chosen: list[Tensor] = []
    drawn: list[_Candidates] = []
    for place, (own, row) in enumerate(zip(logits, rows, strict=True)):
        steered = own if row.is_plain else _steer(own, row)
        chosen.append(steered.argmax() if row.params.temperature == 0 else steered)
        if row.params.temperature:
            drawn.append(_candidates(steered, row, place))
    if drawn:
        noise = gumbel_noise([c.key for c in drawn], [c.ids for c in drawn])
        for candidates, own_noise in zip(drawn, noise):
            chosen[candidates.place] = candidates.ids[(candidates.values + own_noise).argmax()]
    return [int(token) for token in torch.stack(chosen).tolist()]


class _Candidates(NamedTuple):
    """Tokens that can win a row, with their logits over the temperature."""

    place: int
    key: int
    ids: Tensor
    values: Tensor


def _candidates(logits: Tensor, row: Row, place: int) -> _Candidates:
    scaled, ids = _keep_likely(logits / row.params.temperature, row.params)
    if ids is None:  # with little noise on the most likely token and much on another, one below this cannot win
        ids = (scaled >= scaled.max() - _NOISE_RANGE).nonzero().squeeze(1)
        scaled = scaled[ids]
    return _Candidates(place, noise_key(row.seed, row.answer, row.position), ids, scaled)


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


def _keep_likely(logits: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor | None]:
    """Reduce (V,) to what min-p, top-k and top-p leave, and its ids; the ids are None where nothing was ranked."""
    if params.min_p:
        logits = logits.masked_fill(logits < logits.max() + math.log(params.min_p), -torch.inf)
    top_k = params.top_k if 0 < params.top_k < len(logits) else 0
    if not top_k and params.top_p == 1:
        return logits, None
    if top_k:  # of tokens as likely as the last one all stay
        kth = logits.topk(top_k).values[-1]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if params.top_p == 1:
        return logits, None
    shares = logits.softmax(0)
    ranked, ids = shares.topk(min(_NUCLEUS, len(shares)))
    if ranked.sum() < params.top_p and len(ranked) < len(shares):
        ranked, ids = shares.sort(descending=True, stable=True)
    kept = ranked.cumsum(0) - ranked < params.top_p  # a token goes if those before it fill top_p already
    kept &= ranked > 0
    kept[0] = True  # a top_p that float32 rounds to 0 means the most likely token
    ids = ids[kept]
    return logits[ids], ids


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


def gumbel_noise(keys: Sequence[int], ids: Sequence[Tensor]) -> list[Tensor]:
    """Return float32 Gumbel noise of each row's token ids, (n,) each; the same key and id give the same value.

    Rows are computed together and padded to whole vectors: the end of an array is rounded by other instructions.
    """
    sizes = [len(own) for own in ids]
    padding = -sum(sizes) % _VECTOR
    lengths = torch.tensor([*sizes, padding])
    signed = torch.tensor([*map(signed_int, keys), 0]).repeat_interleave(lengths).to(ids[0].device)
    bits = mix(torch.cat([*ids, ids[0].new_zeros(padding)]) ^ signed)
    uniform = ((bits >> 40) & 0xFFFFFF).to(torch.float64).add_(0.5).div_(1 << 24)  # 24 bits, never 0 or 1
    noise = uniform.log_().neg_().log_().neg_().to(torch.float32)
    return list(noise[: sum(sizes)].split(sizes))


def derive_seed(seed: int, count: int) -> int:
    """Return a seed for the `count`-th request of an engine with `seed`."""
    return mix_int(mix_int(seed & MASK64) ^ count) >> 1
