"""Layers in stages: a rank has a run of the layers, and microbatches follow each other through the stages.

    stage 0   F0 F1 F2 B0 F3 B1 ... B2 B3      what travels: the residual stream of a microbatch (n, H) one way,
    stage 1      F0 F1 B0 F2 B1 ...            its gradient the other way
    stage 2         F0 B0 F1 B1 ...

One forward, one backward (Narayanan et al., arXiv 2104.04473, section 2.2): stage s of S holds the activations of at
most S - s microbatches. Every stage reads the same tokens, so that shapes are known on both sides and packs may differ
(docs/decisions/pipeline-stages.md).

Sending and receiving stand in the graph: forward sends the stream and backward waits for its gradient. So a step, and
a measurement without gradients, are written once; only the order of the passes is the pipeline's.

The MTP layers and a tied head need the embedding on the last stage: both ends then keep a copy, add up its gradients,
and so take the same steps to the same bits.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from ling.config import ModelConfig
from ling.model import CausalLM
from ling.ops.cross_entropy import CrossEntropy
from ling.scaling.layout import Layout, stage_layers


class Pass(NamedTuple):
    """A microbatch's way through a stage."""

    microbatch: int
    is_backward: bool


class Stage:
    """This rank's stage, and its neighbours: the ranks with the same tokens in the stages around. All make theirs."""

    def __init__(self, layout: Layout, rank: int, device: torch.device) -> None:
        self.count = layout.pipeline
        self.index = rank // layout.stage_ranks
        self.device = device
        self._rank, self._stride = rank, layout.stage_ranks
        self._sent: deque[tuple[dist.Work, Tensor]] = deque()
        if self.count > 1:
            columns = [list(range(first, layout.gpus, self._stride)) for first in range(self._stride)]
            # Each way has a group of its own: on a GPU a send of one never waits for a receive of the other.
            self._ahead, self._back = _group(columns), _group(columns)
            self._ends = _group([[column[0], column[-1]] for column in columns])

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == self.count - 1

    def passes(self, microbatches: int) -> Iterator[Pass]:
        """Yield the passes of a step in their order; backward takes microbatches in the order of forward."""
        ahead = min(microbatches, self.count - 1 - self.index)
        for i in range(microbatches + ahead):
            if i < microbatches:
                yield Pass(i, is_backward=False)
            if i >= ahead:
                yield Pass(i - ahead, is_backward=True)

    def receive(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """Return what the stage before sends of a microbatch; backward sends its gradient there."""
        return _Received.apply(_anchor(self.device), self, (rows, width), dtype)

    def send(self, x: Tensor) -> Tensor:
        """Send the stream to the stage after; return a () zero in whose backward its gradient arrives."""
        return _Sent.apply(x, _anchor(self.device), self)

    def tell_all(self, numbers: Tensor) -> Tensor:
        """Return, on every stage, what the last one has."""
        dist.broadcast(numbers, self._rank + (self.count - 1 - self.index) * self._stride, group=self._ahead)
        return numbers

    def has_copy(self, config: ModelConfig) -> bool:
        """Whether this stage's embedding lies on another stage, too."""
        return self.count > 1 and (self.is_first or self.is_last) and _copies_embedding(config)

    @torch.no_grad()
    def add_up_copies(self, model: CausalLM) -> None:
        """Add the gradients of the embedding's copies up, if there are any, so that each has the sum."""
        weight = model.model.word_embeddings.weight
        if not self.has_copy(model.config) or not weight.requires_grad:
            return
        gradient: Any = weight.grad
        assert gradient is not None, "the embedding takes part in every forward of the first and of the last stage"
        dist.all_reduce(gradient.to_local() if hasattr(gradient, "to_local") else gradient, group=self._ends)

    def finish(self) -> None:
        """Wait until everything that was sent has left."""
        while self._sent:
            self._sent.popleft()[0].wait()

    # ---- what travels ----

    def _push(self, tensor: Tensor, steps: int) -> None:
        while len(self._sent) > 2 * self.count:  # long since received: a neighbour is at most `count` passes behind
            self._sent.popleft()[0].wait()
        tensor = tensor.detach().contiguous()
        work = dist.isend(tensor, self._rank + steps * self._stride, group=self._ahead if steps > 0 else self._back)
        assert work is not None
        self._sent.append((work, tensor))

    def _pull(self, shape: tuple[int, ...], dtype: torch.dtype, steps: int) -> Tensor:
        tensor = torch.empty(shape, dtype=dtype, device=self.device)
        dist.recv(tensor, self._rank + steps * self._stride, group=self._ahead if steps < 0 else self._back)
        return tensor


def cut(model: CausalLM, stage: Stage) -> None:
    """Leave of `model` what a stage has, in place. What stays keeps its names; `model.elsewhere` has the others'."""
    config, inner = model.config, model.model
    everything = _names(model)
    stream = model.computes_in or inner.layers[0].get_parameter("input_layernorm.weight").dtype
    mine = stage_layers(config.num_hidden_layers, stage.count)[stage.index]
    for layer in range(config.num_stored_layers):
        if layer not in mine and not (stage.is_last and layer >= config.num_hidden_layers):
            inner.layers[layer] = Elsewhere(stage.device)
    if not stage.is_first:

        def before(tokens: Tensor) -> Tensor:
            return stage.receive(len(tokens), config.hidden_size, stream)

        inner.before = before
        if not (stage.is_last and _copies_embedding(config)):
            setattr(inner, "word_embeddings", Elsewhere(stage.device))  # noqa: B010  it stands in for another class
    if not stage.is_last:
        setattr(inner, "norm", SendOn(stage))  # noqa: B010
        if model.lm_head is not None:
            setattr(model, "lm_head", Elsewhere(stage.device))  # noqa: B010
    model.elsewhere = tuple(sorted(everything - _names(model)))


def score_on_last(model: CausalLM, stage: Stage) -> None:
    """Let the last stage score for all; call it when everything else about `model.score` is settled."""
    model.score = _ScoreOnLast(stage, model.score)


class Elsewhere(nn.Module):
    """Stands where another stage has a module: a layer passes the stream on as it is."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.weight = torch.empty(0, device=device)
        """Of no parameter: it says where tensors go."""

    def forward(self, x: Tensor, *_: Any) -> tuple[Tensor, None]:
        return x, None


class SendOn(Elsewhere):
    """Stands in the place of the final norm of a stage that has others after it."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.device)
        self.stage = stage

    def forward(self, x: Tensor, *_: Any) -> Tensor:  # type: ignore[override]
        return self.stage.send(x)


class _ScoreOnLast:
    """Stands in the place of `linear_cross_entropy`: with gradients only the last stage has losses, the others zeros.

    Without gradients all stages return those of the last.
    """

    def __init__(self, stage: Stage, score: Callable[[Tensor, Tensor, Tensor], CrossEntropy]) -> None:
        self.stage = stage
        self.score = score

    def __call__(self, hidden: Tensor, weight: Tensor, labels: Tensor) -> CrossEntropy:
        if self.stage.is_last:
            found = self.score(hidden, weight, labels)
            per_token, correct = found.per_token, found.correct
        else:
            per_token = torch.zeros(len(labels), device=labels.device)
            found = CrossEntropy(hidden, per_token, torch.zeros_like(labels, dtype=torch.bool))
        if torch.is_grad_enabled():
            return found
        told = self.stage.tell_all(torch.stack([found.per_token.float(), found.correct.float()]))
        per_token, correct = told[0], told[1] > 0
        return CrossEntropy(per_token.sum(), per_token, correct)


class _Received(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, stage: Stage, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        ctx.stage = stage
        return stage._pull(shape, dtype, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, None]:
        ctx.stage._push(gradient, -1)
        return None, None, None, None


class _Sent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, stage: Stage) -> Tensor:
        ctx.stage, ctx.arrives = stage, (tuple(x.shape), x.dtype)
        stage._push(x, 1)
        return x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None, None]:
        return ctx.stage._pull(*ctx.arrives, 1), None, None


def _anchor(device: torch.device) -> Tensor:
    """Return what makes autograd record an exchange, whatever the weights around it want."""
    return torch.empty(0, device=device, requires_grad=torch.is_grad_enabled())


def _copies_embedding(config: ModelConfig) -> bool:
    return bool(config.num_nextn_predict_layers) or config.tie_word_embeddings


def _names(model: CausalLM) -> set[str]:
    buffers = (name for name, _ in model.named_buffers() if name.endswith("expert_bias"))
    return {*(name for name, _ in model.named_parameters()), *buffers}


def _group(lists: list[list[int]]) -> ProcessGroup | None:
    group, _ = dist.new_subgroups_by_enumeration(lists)
    return group
