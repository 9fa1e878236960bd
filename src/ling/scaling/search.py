"""Layouts for a number of GPUs: those that fit, fastest first, and why the others do not."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from ling.config import ModelConfig
from ling.errors import ConfigError
from ling.scaling.activations import Workload
from ling.scaling.hardware import Hardware
from ling.scaling.held import MemoryPlan
from ling.scaling.layout import RECOMPUTE, Layout, Recompute, check_layout, divisors
from ling.scaling.memory import plan_memory
from ling.scaling.precision import Precision
from ling.scaling.roofline import StepTime, predict_step

_MICRO_BATCHES = (1, 2, 4, 8, 16)
_LONG_SEQUENCE = 16384
"""From here on context ranks are worth a try."""
_NODES_OF_A_SHARD = 4
"""Most nodes that weights are sharded over before copies are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A layout with what is predicted of it."""

    layout: Layout
    work: Workload
    memory: MemoryPlan
    step: StepTime
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    fitting: list[Candidate]
    """Fastest first; of each layout the best micro-batch and recompute."""
    too_large: list[Candidate]
    """Of each layout that never fits the smallest attempt; nearest miss first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for; None leaves the choice to the search."""

    gpus: int
    sequence_length: int
    global_batch_size: int
    """Sequences per optimizer step."""
    micro_batch: int | None = None
    fixed: dict[str, int | str]
    """Fields of `Layout` that are not searched."""
    imbalance: float = 1.0
    recompute: tuple[Recompute, ...] = RECOMPUTE
    """What is tried of it where it is not fixed."""

    def __post_init__(self) -> None:
        for name, least in (("gpus", 1), ("sequence_length", 1), ("global_batch_size", 1), ("imbalance", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ConfigError(f"micro_batch must be at least 1, got {self.micro_batch}")


def search(model: ModelConfig, request: Request, precision: Precision, device: Hardware) -> Plan:
    """Try layouts of `request.gpus`; ConfigError if none of them divides the model and the batch."""
    if request.sequence_length > model.max_position_embeddings:
        raise ConfigError(
            f"sequence_length {request.sequence_length} is beyond model.max_position_embeddings "
            f"{model.max_position_embeddings}; lower the first or raise the second"
        )
    tried: dict[str, list[Candidate]] = {}
    reason, divided = None, False
    for layout in _layouts(model, request, device):
        try:
            check_layout(model, layout, request.sequence_length)
        except ConfigError as error:
            reason = reason or error
            continue
        divided = True
        for work in _workloads(layout, request):
            memory = plan_memory(model, layout, work, precision)
            step = predict_step(model, layout, work, precision, device)
            fits = memory.peak.total <= device.usable_bytes
            one = Candidate(layout=layout, work=work, memory=memory, step=step, fits=fits)
            tried.setdefault(str(layout), []).append(one)
            if not fits:
                break  # more sequences at once hold more
    if not tried:
        raise reason or _nothing_to_try(request, divided)
    fitting, too_large = [], []
    for candidates in tried.values():
        if good := [c for c in candidates if c.fits]:
            fitting.append(max(good, key=lambda c: c.step.tokens_per_second))
        else:
            too_large.append(min(candidates, key=lambda c: c.memory.peak.total))
    return Plan(
        fitting=sorted(fitting, key=lambda c: -c.step.tokens_per_second),
        too_large=sorted(too_large, key=lambda c: c.memory.peak.total),
    )


def _nothing_to_try(request: Request, divided: bool) -> ConfigError:
    if not divided:
        asked = ", ".join(f"{name} {size}" for name, size in request.fixed.items()) or "these sizes"
        return ConfigError(
            f"no layout of {request.gpus} GPUs has {asked}; data_parallel_shard x data_parallel_replicate x tensor x "
            f"context x pipeline must be {request.gpus}"
        )
    return ConfigError(
        f"{request.global_batch_size} sequences per step cannot be shared out over {request.gpus} GPUs; make the "
        "global batch a multiple of the data-parallel ranks, with at least one microbatch per pipeline stage"
    )


def _layouts(model: ModelConfig, request: Request, device: Hardware) -> Iterator[Layout]:
    gpus, fixed = request.gpus, request.fixed

    def choices(name: str, sizes: list[int]) -> list[int]:
        return [int(fixed[name])] if name in fixed else sizes

    small = [n for n in divisors(gpus) if n <= device.gpus_per_node]
    contexts = small if request.sequence_length >= _LONG_SEQUENCE else [1]
    stages = [n for n in divisors(gpus) if n <= min(16, model.num_hidden_layers)]
    recompute = [r for r in RECOMPUTE if r == fixed["recompute"]] if "recompute" in fixed else request.recompute
    for T, C, p in itertools.product(
        choices("tensor", small), choices("context", contexts), choices("pipeline", stages)
    ):
        data, rest = divmod(gpus, T * C * p)
        if rest:
            continue
        far = device.gpus_per_node * _NODES_OF_A_SHARD
        copies = [1] if data <= far else [1, data // far] if data % far == 0 else [1]
        for replicate in choices("data_parallel_replicate", copies):
            shard, rest = divmod(data, replicate)
            if rest or shard != int(fixed.get("data_parallel_shard", shard)):
                continue
            experts = (
                [n for n in divisors(shard * C * T) if model.num_experts % n == 0] if model.num_moe_layers else [1]
            )
            for expert, again in itertools.product(choices("expert", experts), recompute):
                yield Layout(
                    data_parallel_shard=shard, data_parallel_replicate=replicate, expert=expert, tensor=T, context=C,
                    pipeline=p, recompute=again,
                )  # fmt: skip


def _workloads(layout: Layout, request: Request) -> Iterator[Workload]:
    per_rank, rest = divmod(request.global_batch_size, layout.data_parallel)
    if rest:
        return
    for micro_batch in _MICRO_BATCHES if request.micro_batch is None else (request.micro_batch,):
        if per_rank % micro_batch == 0 and per_rank // micro_batch >= layout.pipeline:
            yield Workload(request.sequence_length, micro_batch, per_rank // micro_batch, request.imbalance)
