"""One engine in a process of its own that answers bursts of prompts: run by benchmarks/serve_vs_vllm.py.

    python -m benchmarks.serving_side ling|vllm DIRECTORY OPTIONS

OPTIONS is JSON. Each line of stdin is JSON, prompts (token ids) and max_tokens; each gets a line of stdout: seconds,
and the tokens of every answer, the most likely ones, past any end. The first line says that the engine is ready.
"""

import json
import os
import sys
import time
from collections.abc import Callable

STREAMS = 16
Generate = Callable[[list[list[int]], int], list[list[int]]]
"""Takes prompts and how many tokens each answer has."""


def main(engine: str, directory: str, options: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    start: Callable[..., tuple[str, Generate]] = {"ling": ling, "vllm": vllm}[engine]
    version, generate = start(directory, **json.loads(options))
    print(json.dumps({"version": version}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        begin = time.perf_counter()
        tokens = generate(asked["prompts"], asked["max_tokens"])
        print(json.dumps({"seconds": time.perf_counter() - begin, "tokens": tokens}), file=answers, flush=True)


def ling(directory: str, *, threads: int, max_model_len: int, step: int = 0) -> tuple[str, Generate]:
    """`step` as `max_num_batched_tokens`."""
    import torch

    from ling.engine.llm import LLM
    from ling.engine.request import SamplingParams
    from ling.version import __version__

    torch.set_num_threads(threads)
    llm = LLM(
        directory, dtype="float32", drafting="none", max_num_seqs=STREAMS, max_model_len=max_model_len,
        enable_prefix_caching=False, max_num_batched_tokens=step,
    )  # fmt: skip

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        done = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=count, ignore_eos=True))
        return [output.outputs[0].token_ids for output in done]

    return __version__, generate


def vllm(directory: str, *, cores: str, max_model_len: int, enforce_eager: bool, cache: str) -> tuple[str, Generate]:
    """`cores` as VLLM_CPU_OMP_THREADS_BIND has them, a thread on each."""
    os.environ |= {
        "VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CACHE_ROOT": cache,
        "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    import vllm as peer

    llm = peer.LLM(
        directory, dtype="float32", enforce_eager=enforce_eager, max_num_seqs=STREAMS, max_model_len=max_model_len,
        enable_prefix_caching=False, disable_log_stats=True,
    )  # fmt: skip

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        params = peer.SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
        done = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in done]

    return peer.__version__, generate


if __name__ == "__main__":
    main(*sys.argv[1:])
