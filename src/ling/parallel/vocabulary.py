"""A vocabulary in pieces: each tensor rank looks up and scores a run of words for all tokens of its neighbours."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed import DeviceMesh, ProcessGroup
from torch.nn import functional

from ling.model import CausalLM
from ling.ops.cross_entropy import IGNORE, CrossEntropy
from ling.ops.precision import at_least_float32
from ling.parallel.tensor import TokenRuns, held, piece

_CHUNK_ELEMENTS = 2**21
"""Logits of this rank's words held at once."""
_MIN_ROWS = 64


def split_vocabulary(model: CausalLM, axis: DeviceMesh, tokens: TokenRuns) -> list[nn.Module]:
    """Put this rank's words in the place of the embedding's and the head's; return the modules that hold them."""
    found: list[nn.Module] = []
    if isinstance(model.model.word_embeddings, nn.Embedding):  # else another stage has it
        embedding = WordsOfEmbedding(model.model.word_embeddings, axis, tokens)
        setattr(model.model, "word_embeddings", embedding)  # noqa: B010  it stands in for another class
        found.append(embedding)
    if isinstance(model.lm_head, nn.Linear):
        model.lm_head.weight = piece(model.lm_head.weight, axis, 0)
        found.append(model.lm_head)
    model.score = VocabularyLoss(tokens)
    return found


class WordsOfEmbedding(nn.Module):
    """A run of the embedding's words: (n,) tokens -> (n, H)."""

    def __init__(self, embedding: nn.Embedding, axis: DeviceMesh, tokens: TokenRuns) -> None:
        super().__init__()
        self.weight = piece(embedding.weight, axis, 0)
        self.tokens = tokens
        self.count = embedding.num_embeddings // axis.size()
        self.first = self.count * axis.get_local_rank()
        padding = embedding.padding_idx
        is_here = padding is not None and self.first <= padding < self.first + self.count
        self.padding = padding - self.first if is_here and padding is not None else None

    def forward(self, tokens: Tensor) -> Tensor:
        index = self.tokens.gather(tokens) - self.first
        here = (index >= 0) & (index < self.count)
        found = functional.embedding(index.where(here, 0), held(self.weight), self.padding)
        return self.tokens.add_up(found * here[:, None])


class VocabularyLoss:
    """Stands in the place of `linear_cross_entropy` where the ranks of a group share out words and tokens.

    Each rank returns the losses of its own slots; they are to be added up over all ranks, and weighed alike.
    """

    def __init__(self, tokens: TokenRuns) -> None:
        self.tokens = tokens

    def __call__(self, hidden: Tensor, weight: Tensor, labels: Tensor) -> CrossEntropy:
        rows, wanted = self.tokens.gather(hidden), self.tokens.gather(labels)
        return CrossEntropy(*_Loss.apply(rows, held(weight), wanted, self.tokens.here, self.tokens.group))


class _Loss(torch.autograd.Function):
    """Chunks of rows with their gradients made on the way forward, as in `ops.torch.cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, here: slice, group: ProcessGroup
    ) -> tuple[Tensor, Tensor, Tensor]:
        compute = torch.promote_types(hidden.dtype, torch.float32)
        counted = (labels != IGNORE).nonzero().squeeze(1)
        first, words = group.rank() * len(weight), len(weight)
        dhidden, dweight = torch.zeros_like(hidden), torch.zeros_like(weight, dtype=compute)
        per_token = torch.zeros(len(labels), dtype=compute, device=hidden.device)
        correct = torch.zeros(len(labels), dtype=torch.bool, device=hidden.device)
        chunk = max(_MIN_ROWS, _CHUNK_ELEMENTS // words)
        for index in counted.split(chunk) if len(counted) else ():
            rows, wanted = hidden.index_select(0, index), labels.index_select(0, index).unsqueeze(1) - first
            mine = (wanted >= 0) & (wanted < words)
            wanted = wanted.where(mine, 0)
            logits = at_least_float32(rows @ weight.t())
            best = logits.amax(1, keepdim=True)
            dist.all_reduce(best, dist.ReduceOp.MAX, group=group)
            target = logits.gather(1, wanted).where(mine, 0)
            exps = logits.sub_(best).exp_()
            known = torch.cat([target, exps.sum(1, keepdim=True)], 1)
            dist.all_reduce(known, group=group)
            target, sums = known.split(1, 1)
            correct[index] = (target >= best).squeeze(1)
            per_token[index] = (best - target + sums.log()).squeeze(1)
            dlogits = exps.div_(sums).scatter_add_(1, wanted, -mine.to(compute))
            low = dlogits.to(hidden.dtype)
            dhidden.index_copy_(0, index, low @ weight)
            dweight.add_(low.t() @ rows)
        ctx.save_for_backward(dhidden, dweight)
        ctx.weight_dtype = weight.dtype
        per_token, correct = per_token[here].clone(), correct[here].clone()
        ctx.mark_non_differentiable(per_token, correct)
        return per_token.sum(), per_token, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor, *_: Any) -> tuple[Tensor, Tensor, None, None, None]:
        dhidden, dweight = ctx.saved_tensors
        return dhidden * dtotal.to(dhidden.dtype), (dweight * dtotal).to(ctx.weight_dtype), None, None, None
