"""Log-likelihoods of given text: what evaluation asks of an engine beside generation."""

from collections.abc import Sequence

import torch

from ling.model import CausalLM
from ling.model.batch import pack
from ling.ops.cross_entropy import IGNORE

_ROWS_AT_ONCE = 16384


@torch.inference_mode()
def negative_log_likelihoods(model: CausalLM, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return, per sequence of n >= 1 tokens, the nats of its tokens 1 to n - 1 given those before: n - 1 numbers."""
    results: list[list[float]] = []
    for group in _groups(sequences):
        tokens, positions, batch = pack(group, device=model.model.word_embeddings.weight.device)
        labels = torch.full_like(tokens, IGNORE)
        labels[:-1] = tokens[1:]
        ends = batch.rows.cu_seqlens[1:].to(torch.int64) - 1
        labels[ends] = IGNORE
        nats = model.score(model(tokens, positions, batch).hidden, model.head_weight, labels).per_token
        results += [part[:-1].tolist() for part in nats.split([len(s) for s in group])]
    return results


def _groups(sequences: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Divide sequences, in order, into packs of bounded size."""
    groups: list[list[Sequence[int]]] = []
    rows = _ROWS_AT_ONCE
    for sequence in sequences:
        rows += len(sequence)
        if rows > _ROWS_AT_ONCE:
            groups.append([])
            rows = len(sequence)
        groups[-1].append(sequence)
    return groups
