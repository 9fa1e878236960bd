"""Bytes that one decoding step has to read, and how many the memory gives per second.

Decoding is bound by memory: at small batches every weight that a step needs is read once and used for a few tokens.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ling.engine.memory import free_memory

if TYPE_CHECKING:
    from ling.engine.core import Engine
    from ling.model import CausalLM

_LAYER = re.compile(r"^model\.layers\.(\d+)\.")
_EMBEDDING = "model.word_embeddings.weight"
_TRIES = 5


@dataclass(frozen=True, slots=True)
class StepBytes:
    """Bytes read by one step."""

    weights: float
    cache: float
    experts: float
    """Different routed experts that a layer reads, on average."""

    @property
    def total(self) -> float:
        return self.weights + self.cache


def step_bytes(engine: "Engine", rows: int, context: float) -> StepBytes:
    """Return what a step without drafts reads, where answers are greedy.

    rows     answers, one token each
    context  tokens that each attends to
    """
    model = engine.model.config
    stored = engine.sizes.bytes_per_block / engine.config.block_size / model.num_stored_layers
    weights, experts = weight_bytes(engine.model, rows)
    if engine.runner.head is not None:
        weights -= engine.runner.head.bytes_spared(rows)
    return StepBytes(weights, rows * context * stored * model.num_hidden_layers, experts)


def weight_bytes(model: "CausalLM", rows: int) -> tuple[float, float]:
    """Return the bytes of weights that `rows` tokens touch, as they are held, and the experts per layer among them.

    MTP layers are left out. Rows choose experts independently and evenly, so that a layer reads E (1 - (1 - k/E)^rows).
    """
    config = model.config
    E, k = config.num_experts, config.num_experts_per_tok
    experts = E * (1 - (1 - k / E) ** rows) if E else 0.0
    total = 0.0
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        layer = _LAYER.match(name)
        if layer is not None and int(layer[1]) >= config.num_hidden_layers:
            continue
        if name == _EMBEDDING:
            total += min(rows, len(tensor)) * tensor[0].nbytes
            total += tensor.nbytes if config.tie_word_embeddings else 0
        else:
            total += tensor.nbytes * (experts / E if ".mlp.experts." in name else 1)
    return total, experts


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """What the memory gave at best; `by` says to what."""

    bytes_per_second: float
    by: str


def measure_bandwidth(device: torch.device) -> Bandwidth:
    """Measure a large sum, product and copy, and return the fastest.

    Each runs over a float32 tensor of 1 GiB, less if little is free, with the threads torch has; the best of five
    counts, so that what else runs beside disturbs little. A copy counts what it reads and what it writes.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    rows = max(1, min(2**30, free // 4) // 2**14)
    x, v = torch.ones(rows, 4096, device=device), torch.ones(4096, device=device)
    y = torch.empty_like(x)
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "sum": (x.nbytes, x.sum),
        "product with a vector": (x.nbytes, lambda: x @ v),
        "copy": (2 * x.nbytes, lambda: y.copy_(x)),
    }
    rates = {name: size / min(_timed(run, device) for _ in range(_TRIES)) for name, (size, run) in ways.items()}
    best = max(rates, key=lambda name: rates[name])
    return Bandwidth(rates[best], f"{best} over {x.nbytes / 2**30:.2g} GiB")


def _timed(run: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
