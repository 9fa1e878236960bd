"""A padded batch as the model sees it: the rows that count, packed, and attention over what the cache holds."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ling.errors import RequestError
from ling.ops.precision import at_least_float32

ATTENTION = ("sdpa", "eager")


class Layout:
    """Where the N tokens that count lie in a padded batch of B sequences with S new tokens each.

    keep        (B, S) bool, or None: all of them
    positions   (B, S) int64
    key_mask    (B, past + S) bool, which slots of cache and new tokens hold a token; None: all
    whole_mask  (B, 1, S, slots) bool, what each new token sees, where the caller says so in full; None: not given
    document    (B, S) int64, grows where positions do not: documents side by side do not see each other; None: one each
    """

    def __init__(
        self, shape: tuple[int, int], past: int, attention_mask: Tensor | None, position_ids: Tensor | None, device: Any
    ) -> None:
        B, S = shape
        self.shape = shape
        self.past = past
        self.key_mask, self.whole_mask = _check_mask(attention_mask, B, S, past + S)
        self.keep: Tensor | None = None
        if self.key_mask is not None:
            if bool(self.key_mask.all()):
                self.key_mask = None
            else:
                self.keep = self.key_mask[:, past:]
        if position_ids is None:
            position_ids = self._positions(device)
        self.positions = position_ids.to(device).expand(B, S)
        self.document: Tensor | None = None
        if past == 0 and self.key_mask is None and self.whole_mask is None:
            starts = self.positions[:, 1:] <= self.positions[:, :-1]
            if bool(starts.any()):
                self.document = torch.nn.functional.pad(starts.cumsum(1), (1, 0))  # (B, S)
        self._row = None if self.keep is None else self.keep.flatten().nonzero().squeeze(1)

    def pack(self, padded: Tensor) -> Tensor:
        """Return the rows that count: (B, S, ...) -> (N, ...)."""
        rows = padded.flatten(0, 1)
        return rows if self._row is None else rows.index_select(0, self._row.to(rows.device))

    def unpack(self, rows: Tensor) -> Tensor:
        """Return rows where they lie in the batch, zeros elsewhere: (N, ...) -> (B, S, ...)."""
        if self._row is not None:
            empty = rows.new_zeros((math.prod(self.shape), *rows.shape[1:]))
            rows = empty.index_copy(0, self._row.to(rows.device), rows)
        return rows.unflatten(0, self.shape)

    def lengths(self) -> list[int]:
        """Return how many neighbouring rows each sequence or document has, in the order of `pack`; none is empty."""
        B, S = self.shape
        if self.document is not None:
            sequence = self.document + S * torch.arange(B, device=self.document.device)[:, None]
            return torch.unique_consecutive(sequence.flatten(), return_counts=True)[1].tolist()
        if self.keep is None:
            return [S] * B
        return [n for n in self.keep.sum(1).tolist() if n]

    def visible(self, slots: int, device: torch.device) -> Tensor | None:
        """Return (B or 1, 1, S, slots) bool, which slot each new token sees; None: plainly causal, nothing cached."""
        S = self.shape[1]
        if (
            self.whole_mask is None
            and self.key_mask is None
            and self.document is None
            and self.past == 0
            and slots == S
        ):
            return None
        here = torch.arange(self.past, self.past + S, device=device)[:, None]
        slot = torch.arange(slots, device=device)
        if self.whole_mask is not None:
            return self.whole_mask.to(device)[..., :slots] | (slot == here)
        seen = (slot <= here)[None]
        if self.key_mask is not None:
            held = torch.nn.functional.pad(self.key_mask.to(device), (0, slots - self.key_mask.shape[1]))
            # Padding sees itself: a softmax over nothing is NaN, which gradients would carry to everything.
            seen = seen & held[:, None] | (slot == here)
        if self.document is not None:
            document = self.document.to(device)
            seen = seen & (document[:, :, None] == document[:, None, :])
        return seen[:, None]

    def _positions(self, device: Any) -> Tensor:
        if self.key_mask is None:
            return torch.arange(self.past, self.past + self.shape[1], device=device)[None]
        return (self.key_mask.cumsum(1) - 1).clamp_min(0)[:, self.past :]


@dataclass
class PaddedBatch:
    """An `AttentionBatch` over a padded batch and, for main layers, a cache of transformers."""

    layout: Layout
    cache: Any
    """transformers' Cache, or None."""
    num_cached_layers: int
    """MTP layers lie behind them and see new tokens only."""
    implementation: str
    mtp_ids: Tensor | None = None
    attentions: list[Tensor] | None = None
    """Where eager attention leaves the weights (B, A, S, M) of main layers; None: nowhere."""
    _masks: dict[tuple[int, torch.device], Tensor | None] = field(default_factory=dict)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (self.layout.unpack(x).transpose(1, 2) for x in (q, k, v))  # (B, heads, S, D)
        if self.cache is not None and layer < self.num_cached_layers:
            k, v = self.cache.update(k, v, layer, {"cache_position": self._cache_position(q.device)})
        mask = self._visible(k.shape[2], q.device)
        if self.implementation == "eager":
            out, weights = eager_attention(q, k, v, mask)
            if self.attentions is not None and layer < self.num_cached_layers:
                self.attentions.append(weights)
        else:
            out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        return self.layout.pack(out.transpose(1, 2))

    def _cache_position(self, device: torch.device) -> Tensor:
        return torch.arange(self.layout.past, self.layout.past + self.layout.shape[1], device=device)

    def _visible(self, slots: int, device: torch.device) -> Tensor | None:
        key = (slots, device)
        if key not in self._masks:
            self._masks[key] = self.layout.visible(slots, device)
        return self._masks[key]


def eager_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attend in plain torch, softmax in float32: q (B, A, S, D), k and v (B, K, M, D) -> (B, A, S, D), weights."""
    per_kv_head = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(per_kv_head, 1), v.repeat_interleave(per_kv_head, 1)
    scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    if visible is None:
        visible = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).tril()
    weights = at_least_float32(scores).masked_fill(~visible, -torch.inf).softmax(-1).to(q.dtype)
    return weights @ v, weights


def _check_mask(mask: Tensor | None, B: int, S: int, slots: int) -> tuple[Tensor | None, Tensor | None]:
    """Return a mask of tokens and a mask of pairs, of which at most one is given.

    transformers makes the second itself for caches of a fixed size, which have more slots than are filled.
    """
    if mask is None:
        return None, None
    if mask.ndim == 2 and mask.shape[0] == B and mask.shape[1] >= slots:
        return mask[:, :slots].bool(), None
    if mask.dtype == torch.bool and mask.shape[:3] == (B, 1, S) and mask.shape[3] >= slots:
        return None, mask
    raise RequestError(
        f"attention_mask is {str(mask.dtype).removeprefix('torch.')} {tuple(mask.shape)}; give ({B}, {slots}): 1 for "
        f"each token, cached ones included, 0 for padding; or bool ({B}, 1, {S}, {slots}): what each token sees"
    )
