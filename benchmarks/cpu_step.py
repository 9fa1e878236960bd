"""Where the time of a decoding step goes on a CPU: each part by itself, and the step as a whole.

    python -m benchmarks.run cpu_step

A few layers of Ling-mini with random weights and the whole head, int8, and int4 with the head in int8. A part is a call
for each layer over that layer's own weights, in the order of a step, so that nothing is in a cache that would not be.
What a step takes beyond its parts is attention, norms, choices and waiting for each other; what a part takes beyond
the bandwidth beside it is its own. A call costs a few microseconds of Python that a step, one call for all layers, has
not.
"""

import dataclasses
import json
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.cpu_kernels import fill
from benchmarks.cpu_race.bursts import bandwidth
from benchmarks.results import describe_machine, save
from ling.checkpoint.packing import pack, read_weights
from ling.checkpoint.pages import to_empty_in_huge_pages
from ling.config import ModelConfig, preset
from ling.engine.cache import PagedCache, Part
from ling.engine.runner import Runner
from ling.model import CausalLM
from ling.model.moe import SparseMoe
from ling.ops.linear import linear
from ling.ops.mlp import swiglu_mlp
from ling.ops.moe import moe_layer

LAYERS, CONTEXT, STEPS, TURNS = 6, 16, 40, 5


class Call(NamedTuple):
    part: str
    run: Callable[[Tensor], Any]
    nbytes: float


def main() -> None:
    numbers: dict[str, Any] = {"threads": torch.get_num_threads(), "layers": LAYERS}
    with torch.inference_mode():
        for weights in ("int8", "int4,head=int8"):
            numbers[weights] = account(draw(weights))
    print(json.dumps(numbers, indent=2))
    print(describe_machine())
    print(save("cpu-step", numbers).name)


def draw(weights: str) -> CausalLM:
    tree = preset("ling_mini")["model"]
    config = dataclasses.replace(ModelConfig(**tree), num_hidden_layers=LAYERS, num_nextn_predict_layers=0)
    with torch.device("meta"):
        model = CausalLM(config)
    pack(model, read_weights(weights))
    to_empty_in_huge_pages(model)
    for tensor in [*model.parameters(), *model.buffers()]:
        fill(tensor)
    return model.requires_grad_(False)


def account(model: CausalLM) -> list[dict[str, Any]]:
    """Return what each turn found: the step, its parts, and what is left."""
    cache = PagedCache(model.config, 64, 16, torch.float32, torch.device("cpu"), held=torch.float16)
    runner, calls = Runner(model, cache, 1024), list(calls_of(model))
    rows = torch.randn(64, 1, model.config.hidden_size)
    nbytes: Counter[str] = Counter()
    for call in calls:
        nbytes[call.part] += call.nbytes  # type: ignore[assignment]
    turns = []
    for _ in range(TURNS):
        beside = [bandwidth()]
        whole = [step(runner, i) for i in range(STEPS)]
        beside.append(bandwidth())
        found: defaultdict[str, list[float]] = defaultdict(list)
        for i in range(STEPS):
            for part, seconds in parts(calls, rows[i % len(rows)]).items():
                found[part].append(seconds)
        beside.append(bandwidth())
        limit = statistics.median(beside)
        told = {"step": entry(whole, sum(nbytes.values()), limit)}
        told |= {part: entry(seconds, nbytes[part], limit) for part, seconds in found.items()}
        rest = told["step"]["median_us"] - sum(told[part]["median_us"] for part in found)
        turns.append({"bandwidth_gb_per_s": round(limit, 1), **told, "the_rest_median_us": round(rest)})
    return turns


def calls_of(model: CausalLM) -> list[Call]:
    calls = []
    for layer in model.model.layers:
        qkv, out = layer.attention.query_key_value.quantity(), layer.attention.dense.quantity()
        calls += [product("query, key, value", qkv), product("attention's output", out)]
        if isinstance(layer.mlp, SparseMoe):
            w, rule, E = layer.mlp.weights(), layer.mlp.rule, model.config.num_experts
            read = (w.gate_up_proj.nbytes + w.down_proj.nbytes) * model.config.num_experts_per_tok / E
            read += w.gate.nbytes + sum(q.nbytes for q in w.shared or ())
            calls.append(Call("sparse layers", lambda x, w=w, rule=rule: moe_layer(x, w, rule), read))
        else:
            three = layer.mlp.quantities()
            calls.append(Call("dense layer", lambda x, q=three: swiglu_mlp(x, *q), sum(q.nbytes for q in three)))
    return [*calls, product("head", model.lm_head.quantity())]


def product(part: str, weight: Any) -> Call:
    return Call(part, lambda x: linear(x, weight), weight.nbytes)


def step(runner: Runner, index: int) -> float:
    begin = time.perf_counter()
    (hidden,), _ = runner.forward([Part(range(CONTEXT // 16 + 1), CONTEXT, 1)], [[5 + index]])
    runner.logits(hidden)
    return time.perf_counter() - begin


def parts(calls: list[Call], x: Tensor) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for call in calls:
        begin = time.perf_counter()
        call.run(x)
        seconds[call.part] = seconds.get(call.part, 0.0) + time.perf_counter() - begin
    return seconds


def entry(seconds: list[float], nbytes: float, limit: float) -> dict[str, float]:
    median = statistics.median(seconds)
    return {
        "median_us": round(1e6 * median),
        "fastest_us": round(1e6 * min(seconds)),
        "mb": round(nbytes / 1e6, 1),
        "gb_per_s": round(nbytes / median / 1e9, 1),
        "bandwidth_percent": round(100 * nbytes / median / 1e9 / limit),
    }


if __name__ == "__main__":
    main()
