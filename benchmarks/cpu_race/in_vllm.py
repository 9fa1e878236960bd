"""vLLM's side, on a directory that `ling export --for vllm` writes; its engine runs in this process."""

import os
from collections.abc import Collection
from typing import Any

from benchmarks.cpu_race.side import BATCH, Answer, by_steps


def start(
    model: str, *, threads: int, length: int, streams: int, vocabulary: int, dtype: str, eager: bool, scratch: str
) -> tuple[dict[str, Any], Answer]:
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.environ |= {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)), "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": scratch, "TORCHINDUCTOR_CACHE_DIR": f"{scratch}/inductor",
    }  # fmt: skip
    import vllm  # behind the environment, which it reads

    llm = vllm.LLM(
        model, dtype=dtype, enforce_eager=eager, max_num_seqs=streams, max_model_len=length,
        max_num_batched_tokens=max(BATCH, length), enable_prefix_caching=False, disable_log_stats=True,
    )  # fmt: skip
    told = {"version": vllm.__version__, "engine": [dtype, "eager" if eager else "compiled"]}
    return told, by_steps(
        _Steps(llm, vllm.SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True)), vocabulary
    )


class _Steps:
    def __init__(self, llm: Any, params: Any) -> None:
        self._engine = llm.llm_engine
        self._params = params

    def add(self, name: str, ids: list[int], *, known: bool) -> None:
        self._engine.add_request(name, {"prompt_token_ids": ids}, self._params)

    def step(self) -> Collection[str]:
        return [output.request_id for output in self._engine.step()]

    def drop(self, names: list[str]) -> None:
        self._engine.abort_request(names)
