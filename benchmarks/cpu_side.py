"""One engine in a process of its own that decodes and reads prompts: run by benchmarks/cpu_vs_llamacpp.py.

    python -m benchmarks.cpu_side ling|llama.cpp MODEL OPTIONS

OPTIONS is JSON: threads, length (most tokens of one sequence), streams (most at once), vocabulary, and what belongs to
one engine. Each line of stdin is JSON and gets a line of stdout:

    {"do": "prefill", "tokens": n}                                   {"seconds": [s]}
    {"do": "decode", "context": c, "tokens": n, "streams": b}        {"seconds": [s per step, n of them]}
    {"do": "experts", "streams": b, "tokens": n}                     {"unique": mean per layer and step}, ling alone

The first line says that the engine is ready: its version, how it holds its weights, and the seconds of loading. Prompts
are random, no two alike. llama.cpp's side needs the standard library alone and feeds itself random tokens; ours
chooses its own, greedily, and pays for choosing.
"""

import ctypes as c
import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

BATCH = 512
"""Tokens of a prompt that are read at once, on both sides."""
Answer = Callable[[dict[str, Any]], dict[str, Any]]


def main(engine: str, model: str, options: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    start: Callable[..., tuple[dict[str, Any], Answer]] = {"ling": ling, "llama.cpp": llama_cpp}[engine]
    begin = time.perf_counter()
    told, answer = start(model, **json.loads(options))
    print(json.dumps(told | {"load_seconds": round(time.perf_counter() - begin, 2)}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


# ---- ours ----


def ling(
    model: str, *, threads: int, length: int, streams: int, vocabulary: int, pages: str, cache: str
) -> tuple[dict[str, Any], Answer]:
    import torch

    from ling.config.engine import EngineConfig
    from ling.engine.build import build, describe, load
    from ling.engine.request import SamplingParams
    from ling.model.moe import SparseMoe
    from ling.version import __version__

    torch.set_num_threads(threads)
    loaded, tokenizer = load(model, pages=pages)  # type: ignore[arg-type]
    engine = build(
        loaded, tokenizer,
        EngineConfig(
            max_model_len=length, max_num_seqs=streams, max_num_batched_tokens=BATCH, enable_prefix_caching=False,
            num_blocks=_blocks(length, streams), drafting="none", kv_cache_dtype=cache,  # type: ignore[arg-type]
        ),
    )  # fmt: skip
    draw = random.Random(0)

    def start(context: int, count: int, limit: int) -> list[str]:
        names = [str(draw.random()) for _ in range(count)]
        for name in names:
            ids = [draw.randrange(vocabulary) for _ in range(max(1, context))]
            engine.add(name, ids, SamplingParams(temperature=0, max_tokens=limit, ignore_eos=True))
        return names

    def decode(context: int, tokens: int, streams: int) -> list[float]:
        names = start(context, streams, length)
        begun: set[str] = set()
        while len(begun) < streams:
            begun |= {delta.request_id for delta in engine.step()}
        seconds = []
        for _ in range(tokens):
            begin = time.perf_counter()
            deltas = engine.step()
            seconds.append(time.perf_counter() - begin)
            assert sum(len(delta.token_ids) for delta in deltas) == streams, [delta.error for delta in deltas]
        for name in names:
            engine.abort(name)
        return seconds

    def prefill(tokens: int) -> list[float]:
        start(tokens, 1, 1)
        begin = time.perf_counter()
        while engine.has_work:
            engine.step()
        return [time.perf_counter() - begin]

    def experts(streams: int, tokens: int) -> float:
        counts: list[int] = []
        layers = [module for module in loaded.modules() if isinstance(module, SparseMoe)]
        names = start(8, streams, length)
        for _ in range(2 * streams):  # prompts are read by then
            engine.step()
        hooks = [m.register_forward_hook(lambda _m, _x, out: counts.append(int((out[1].counts > 0).sum())))
                 for m in layers]  # fmt: skip
        for _ in range(tokens):
            engine.step()
        for hook in hooks:
            hook.remove()
        for name in names:
            engine.abort(name)
        return sum(counts) / max(1, len(counts))

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        if asked["do"] == "prefill":
            return {"seconds": prefill(asked["tokens"])}
        if asked["do"] == "experts":
            return {"unique": round(experts(asked["streams"], asked["tokens"]), 1)}
        return {"seconds": decode(asked["context"], asked["tokens"], asked["streams"])}

    return {"version": __version__, "engine": describe(engine)}, answer


def _blocks(length: int, streams: int) -> int:
    return -(-length // 16) + streams * 32


# ---- llama.cpp ----


def llama_cpp(model: str, *, threads: int, vocabulary: int, repack: bool, **_: Any) -> tuple[dict[str, Any], Answer]:
    from benchmarks.llama_cpp_probe import Batch, ContextParams, ModelParams, load_libraries

    _, llama = load_libraries()
    llama.llama_model_default_params.restype = ModelParams
    llama.llama_context_default_params.restype = ContextParams
    llama.llama_batch_init.restype = Batch
    llama.llama_model_load_from_file.restype = llama.llama_init_from_model.restype = c.c_void_p
    llama.llama_get_logits.restype = c.POINTER(c.c_float)
    llama.llama_backend_init()
    params = llama.llama_model_default_params()
    params.use_extra_bufts = repack
    loaded = c.c_void_p(llama.llama_model_load_from_file(model.encode(), params))
    if not loaded:
        sys.exit(f"llama.cpp does not load {model}")
    draw = random.Random(1)
    batch = llama.llama_batch_init(BATCH, 0, 1)

    def context_for(length: int, streams: int) -> c.c_void_p:
        wanted = llama.llama_context_default_params()
        wanted.n_ctx, wanted.n_batch, wanted.n_ubatch = max(256, length) * streams, BATCH, BATCH
        wanted.n_seq_max, wanted.n_threads, wanted.n_threads_batch = streams, threads, threads
        made = c.c_void_p(llama.llama_init_from_model(loaded, wanted))
        assert made, "no context"
        return made

    def run(context: c.c_void_p, rows: list[tuple[int, int]], *, last_only: bool) -> None:
        """Run rows of (sequence, position) with random tokens, and wait for the logits."""
        batch.n_tokens = len(rows)
        for i, (sequence, position) in enumerate(rows):
            batch.token[i], batch.pos[i] = draw.randrange(vocabulary), position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = not last_only or i == len(rows) - 1
        assert llama.llama_decode(context, batch) == 0
        llama.llama_get_logits(context)

    def fill(context: c.c_void_p, sequence: int, tokens: int) -> None:
        for begin in range(0, tokens, BATCH):
            rows = [(sequence, p) for p in range(begin, min(begin + BATCH, tokens))]
            run(context, rows, last_only=True)

    def decode(length: int, tokens: int, streams: int) -> list[float]:
        length = max(1, length)
        context = context_for(length + tokens + 1, streams)
        for sequence in range(streams):
            fill(context, sequence, length)
        seconds = []
        for step in range(tokens):
            begin = time.perf_counter()
            run(context, [(s, length + step) for s in range(streams)], last_only=False)
            seconds.append(time.perf_counter() - begin)
        llama.llama_free(context)
        return seconds

    def prefill(tokens: int) -> list[float]:
        context = context_for(tokens, 1)
        begin = time.perf_counter()
        fill(context, 0, tokens)
        seconds = time.perf_counter() - begin
        llama.llama_free(context)
        return [seconds]

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        if asked["do"] == "prefill":
            return {"seconds": prefill(asked["tokens"])}
        return {"seconds": decode(asked["context"], asked["tokens"], asked["streams"])}

    return {"version": "b11434", "engine": ["repacked" if repack else "as in the file"]}, answer


if __name__ == "__main__":
    main(*sys.argv[1:])
