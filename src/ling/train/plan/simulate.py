"""A training step on tensors that have a shape and no content, as one rank of a group whose other ranks are nobody.

The real model is built, sharded, run forward and backward and updated twice; a tracker adds up the storages that live.
So a layout is known to construct, and its bytes per rank are those of its tensors. Not tensors, and so not counted: an
allocator's rounding, communication buffers, workspaces inside kernels. Counted although a real step spares it: where
two gradients of one weight meet (the embedding's, with MTP), autograd adds in place only if they are plain tensors.

What depends on content gets its shape from an assumption: every slot has a label, experts are balanced and a token goes
to as many of their ranks as it can, a grouped GEMM takes any dtype, and clipping is left out, which needs no memory to
speak of.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode

from ling.config import ModelConfig
from ling.errors import ConfigError
from ling.model import CausalLM
from ling.model.batch import PackedBatch
from ling.ops.ragged import Ragged
from ling.optim.moments import LEAST_ELEMENTS, SCALE, num_scales
from ling.parallel.ranks import Ranks
from ling.scaling.activations import Workload
from ling.scaling.layout import Layout, check_layout
from ling.scaling.memory import plan_memory
from ling.scaling.precision import Precision
from ling.train.batch import TrainBatch
from ling.train.in_backward import Layer, layers_of
from ling.train.loss import compute_loss
from ling.train.plan.sharding import lay_out

MOST_RANKS = 1024
_STEPS = 2
"""The first makes the moments, the second meets them."""
_BFLOAT16_BYTES = 2
_GROUPED_BYTES = 16
"""Rows of a grouped product are a multiple of this (ling.ops.torch.linear)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """Bytes of the first rank of a stage at the fullest moment of a step."""

    stage: int
    """Of the pipeline: the one that is predicted to be the fullest."""

    parameters: int
    gradients: int
    moments: int
    activations: int
    """What autograd keeps, as the tracker tells it from temporary tensors."""
    temporary: int
    buffers: int
    total: int
    seconds: float
    """How long simulating took."""


def simulate(model: ModelConfig, layout: Layout, work: Workload, precision: Precision) -> Simulation:
    """Run two steps without content; ConfigError if today's code cannot build `layout`."""
    check_layout(model, layout, work.sequence_length)
    if layout.gpus > MOST_RANKS:
        raise ConfigError(f"cannot simulate {layout.gpus} ranks; at most {MOST_RANKS}")
    if precision.sharded != "all" or precision.frozen:
        raise ConfigError("only our own training steps can be simulated; use --precision float32 or bfloat16")
    width = model.moe_intermediate_size * precision.compute_bytes
    if (model.num_moe_layers or model.num_nextn_predict_layers) and width % _GROUPED_BYTES:
        raise ConfigError(
            f"cannot simulate experts of width {model.moe_intermediate_size} in {precision.compute}: grouped products "
            f"take rows of a multiple of {_GROUPED_BYTES} bytes, others need values; use --precision float32"
        )
    began = time.perf_counter()
    stage = plan_memory(model, layout, work, precision).stage
    with _nobody_else(layout.gpus, stage * layout.stage_ranks):
        with torch.device("meta"):
            network = CausalLM(model)
            if precision.parameter == _BFLOAT16_BYTES:
                network.bfloat16()
            ranks = lay_out(network, layout, precision)
        peak = _run(network, work, ranks, precision)
    return Simulation(
        stage=stage,
        parameters=peak["Parameter"],
        gradients=peak["Gradient"],
        moments=peak["Optstate"],
        activations=peak["Activation"],
        temporary=peak["Temp"],
        buffers=peak["Buffer"],
        total=peak["Total"],
        seconds=time.perf_counter() - began,
    )


def _run(network: CausalLM, work: Workload, ranks: Ranks, precision: Precision) -> dict[str, int]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device="cpu")
        optimizer = _Adam(network.parameters(), precision.moments / 2)
        released = layers_of(network) if precision.releases else []
        optimizer.prepare(parameter for layer in released for parameter in layer.parameters)
        batch = _batch(network.config, work).shared(ranks)
        microbatches = min(ranks.stage.count + 1, work.microbatches)  # more of them hold no more
        rate = 1e-6 if work.z_loss else 0.0
        tracker = MemTracker()
        tracker.track_external(network, optimizer, batch.tokens, batch.positions, batch.labels, batch.mtp_labels)
        with tracker, _WithoutContent():
            for _ in range(_STEPS):
                losses: deque[Tensor] = deque()
                outputs = []
                for _, is_backward in ranks.stage.passes(microbatches):
                    if is_backward:
                        losses.popleft().backward()
                        continue
                    tracker.reset_mod_stats()
                    outputs.append(ranks.run(network, batch.tokens, batch.positions, batch.attention, batch.token_runs))
                    while released:  # by now the tracker has hooks of its own, which are to see gradients first
                        _release_from(released.pop(), optimizer)
                    found = compute_loss(network, outputs[-1], batch.labels, batch.mtp_labels, router_z_loss=rate)
                    losses.append(found.total)
                    del found
                ranks.stage.finish()
                optimizer.step()
                outputs.clear()
                optimizer.zero_grad(set_to_none=True)
    (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    return {str(getattr(key, "value", key)): int(value) for key, value in snapshot.items()}


def _batch(model: ModelConfig, work: Workload) -> TrainBatch:
    N, D = work.micro_batch * work.sequence_length, model.num_nextn_predict_layers
    row = partial(torch.zeros, dtype=torch.int64)
    rows = Ragged([work.sequence_length] * work.micro_batch)
    return TrainBatch(row(N), row(N), row(N), row(D, N), PackedBatch(rows, row(D, N) if D else None))


class _Adam(torch.optim.Optimizer):
    """The memory of fused AdamW: two moments per local weight, no temporary tensors; the values mean nothing.

    torch's own would ask DTensor how to shard each operation, and the tensors it tries that on would be counted.
    """

    def __init__(self, parameters: Iterator[nn.Parameter], moment_bytes: float) -> None:
        super().__init__(parameters, {})
        self._moment_bytes = moment_bytes

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            self.update_(group["params"])

    @torch.no_grad()
    def update_(self, parameters: Iterable[Tensor]) -> None:
        for p in parameters:
            if p.grad is None:
                continue
            local, grad = _local(p), _local(p.grad)
            if not self.state[p]:
                self.prepare([p])
            for moment in self.state[p].values():
                moment.zero_()
            local.add_(grad)

    @torch.no_grad()
    def prepare(self, parameters: Iterable[Tensor]) -> None:
        """Make moments that are to be there before the first step."""
        for p in parameters:
            local = _local(p)
            is_small = p.dim() < 2 or p.numel() < LEAST_ELEMENTS  # of the whole parameter
            for key in ("exp_avg", "exp_avg_sq"):
                self.state[p] |= _moment(key, local, 4 if is_small else self._moment_bytes)


def _moment(key: str, like: Tensor, each: float) -> dict[str, Tensor]:
    """Return a moment of so many bytes each, and its scales where they are one and a bit."""
    dtype = {4: torch.float32, 2: torch.bfloat16}.get(int(each), torch.uint8)
    scales = {key + SCALE: like.new_empty(num_scales(like.numel()), dtype=torch.float32)} if each < 2 else {}
    return {key: torch.empty_like(like, dtype=dtype), **scales}


def _release_from(layer: Layer, optimizer: _Adam) -> None:
    """Let the gradients of a layer go when they are complete, as `ling.train.in_backward` does."""

    def arrive(_: Tensor) -> None:
        layer.arrived += 1
        if layer.arrived == len(layer.parameters):
            layer.arrived = 0
            optimizer.update_(layer.parameters)
            for parameter in layer.parameters:
                parameter.grad = None

    for parameter in layer.parameters:
        parameter.register_post_accumulate_grad_hook(arrive)


def _local(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class _WithoutContent(TorchDispatchMode):
    """Shapes of operations whose result depends on values, or whose fake version takes bfloat16 alone."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._grouped_mm.default:
            a, b = args[0], args[1]
            if a.dim() == 2 and b.dim() == 2:  # a weight gradient per group
                offsets = args[2] if len(args) > 2 else (kwargs or {})["offs"]
                return a.new_empty(offsets.shape[0], a.shape[0], b.shape[1])
            return a.new_empty(a.shape[0], b.shape[-1])
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_empty(args[0].numel(), args[0].dim(), dtype=torch.int64)
        return func(*args, **(kwargs or {}))


@contextmanager
def _nobody_else(ranks: int, rank: int) -> Iterator[None]:
    """Be one of `ranks`; the others answer at once and with nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise ConfigError("cannot simulate inside a distributed run; call `ling plan --simulate` on its own")
    with ExitStack() as stack:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
        stack.callback(dist.destroy_process_group)
        yield
