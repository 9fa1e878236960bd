"""Choosing tokens: Gumbel-max with noise that is a function, not a stream.

The noise of (seed, position, token id) depends on nothing else: not on the batch, not on what was sampled before,
not on whether a token is being drafted or verified. So the same seed gives the same text, and a draft that uses the
same noise agrees with its target wherever their distributions agree.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ling.engine.request import SamplingParams

_MASK64 = (1 << 64) - 1


class Row(NamedTuple):
    """What a choice depends on beside its logits."""

    params: SamplingParams
    tokens: Sequence[int]
    """Of the sequence so far, prompt included; not copied."""
    num_prompt: int
    drafts: Sequence[int] = ()
    """That stand between them and the token to choose."""

    @property
    def position(self) -> int:
        """Index that the chosen token will have in its sequence."""
        return len(self.tokens) + len(self.drafts)


def sample(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """Choose one token per row; logits (N, V) float32."""
    if all(row.params.is_plain_greedy for row in rows):
        return logits.argmax(1).tolist()
    chosen = [_sample_row(own, row) for own, row in zip(logits, rows, strict=True)]
    return [int(token) for token in torch.stack(chosen).tolist()]


def _sample_row(logits: Tensor, row: Row) -> Tensor:
    params = row.params
    logits = _steer(logits, row)
    if params.temperature == 0:
        return logits.argmax()
    scaled = _keep_likely(logits / params.temperature, params)
    return (scaled + gumbel_noise(params.seed, row.position, len(logits), logits.device)).argmax()


def _steer(logits: Tensor, row: Row) -> Tensor:
    """Apply bias, then penalties; each row counts its own drafts, so verifying chooses as plain decoding does."""
    params = row.params
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=logits.device)
        bias = torch.tensor(list(params.logit_bias.values()), dtype=logits.dtype, device=logits.device)
        logits = logits.index_add(0, ids, bias)
    if not params.counts_tokens:
        return logits
    answer = torch.tensor([*row.tokens[row.num_prompt :], *row.drafts], dtype=torch.int64, device=logits.device)
    once = torch.ones(len(answer), device=logits.device)
    counts = torch.zeros(len(logits), device=logits.device).index_add_(0, answer, once)
    if params.repetition_penalty != 1:
        prompt = torch.tensor(row.tokens[: row.num_prompt], dtype=torch.int64, device=logits.device)
        seen = (counts > 0).index_fill(0, prompt, True)
        penalised = torch.where(logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty)
        logits = torch.where(seen, penalised, logits)
    return logits - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)


def _keep_likely(logits: Tensor, params: SamplingParams) -> Tensor:
    """Set everything outside min-p, top-k and top-p to -inf."""
    if params.min_p:
        logits = logits.masked_fill(logits < logits.max() + math.log(params.min_p), -torch.inf)
    if params.top_k and params.top_k < len(logits):
        kth = logits.topk(params.top_k).values[-1]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if params.top_p < 1:
        ranked, order = logits.softmax(0).sort(descending=True, stable=True)
        unlikely = ranked.cumsum(0) - ranked >= params.top_p  # everything more likely fills top_p already
        logits = logits.masked_fill(torch.empty_like(unlikely).scatter_(0, order, unlikely), -torch.inf)
    return logits


def gumbel_noise(seed: int, position: int, vocab_size: int, device: torch.device) -> Tensor:
    """Return (V,) float32 Gumbel noise; the same arguments give the same values on every device."""
    key = _mix_int(_mix_int(seed & _MASK64) ^ (position & _MASK64))
    ids = torch.arange(vocab_size, dtype=torch.int64, device=device)
    bits = _mix(ids ^ _signed(key))
    uniform = ((bits >> 40) & 0xFFFFFF).to(torch.float64).add_(0.5).div_(1 << 24)  # 24 bits, never 0 or 1
    return uniform.log_().neg_().log_().neg_().to(torch.float32)


# splitmix64's finaliser (Steele, Lea and Flood, OOPSLA 2014), on Python integers and on int64 tensors that wrap.
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mix_int(z: int) -> int:
    z = (z + _STEP) & _MASK64
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK64
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK64
    return z ^ (z >> 31)


def _mix(z: Tensor) -> Tensor:
    z = z + _signed(_STEP)
    z = (z ^ _shift_right(z, 30)) * _signed(_FIRST)
    z = (z ^ _shift_right(z, 27)) * _signed(_SECOND)
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Shift in zeros; int64's own shift copies the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
