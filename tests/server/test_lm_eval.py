"""lm-eval, in an environment of its own, as a client of the server: log-likelihoods by echo, and chats."""

import json
import os
import subprocess
from pathlib import Path
from random import Random
from typing import Any

import pytest
from benchmarks.peers import peer_python

from ling.data.dialogues import heldout_set
from ling.engine.scoring import negative_log_likelihoods
from ling.tokenizer import encode_chat

QUESTIONS, CHOICES = 16, 4
NATS = 1e-3
"""By which a sum over an answer may differ: rows of other batches are added up in another order."""

CHOOSING = """
task: choosing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
ANSWERING = """
task: answering
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 40, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


def evaluate(kind: str, task: str, documents: list[dict[str, Any]], url: str, scratch: Path, *more: str) -> Any:
    """Run one task with lm-eval; return its results, and its samples in the documents' order."""
    file, out = scratch / "documents.jsonl", scratch / "out"
    file.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    (scratch / "task.yaml").write_text(task.format(file=file), encoding="utf-8")
    name = task.split()[1]
    path = {"local-completions": "completions", "local-chat-completions": "chat/completions"}[kind]
    command = [
        str(peer_python("lm_eval")), "-m", "lm_eval", "--model", kind, "--tasks", name, "--include_path", str(scratch),
        "--model_args", f"model=ling,base_url={url}/v1/{path},num_concurrent=4,max_length=512",
        "--output_path", str(out), "--log_samples", *more,
    ]  # fmt: skip
    environment = {"HF_HOME": str(scratch / "hub"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,), (results,) = out.rglob(f"samples_{name}_*.jsonl"), out.rglob("results_*.json")
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    return json.loads(results.read_text(encoding="utf-8"))["results"][name], sorted(lines, key=lambda s: s["doc_id"])


def draw_questions() -> list[dict[str, Any]]:
    """Questions of facts with their answers, each beside the answers to others."""
    random = Random(0)
    drawn = [
        (d.messages[0]["content"], d.messages[1]["content"])
        for d in heldout_set("facts", 3 * QUESTIONS, seed=5)
        if [m["role"] for m in d.messages] == ["user", "assistant"]
    ][:QUESTIONS]
    assert len(drawn) == QUESTIONS
    documents = []
    for question, answer in drawn:
        others = sorted({other for _, other in drawn} - {answer})
        choices = [answer, *random.sample(others, CHOICES - 1)]
        random.shuffle(choices)
        documents.append({"question": question, "choices": choices, "answer": choices.index(answer)})
    return documents


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_lm_eval_gets_the_log_likelihoods_that_we_compute(live, tmp_path):
    model, tokenizer = live.service.engine.engine.model, live.service.tokenizer
    documents = draw_questions()
    for document in documents:  # lm-eval 0.4.13 cannot render chats for log-likelihoods by a server's tokenizer
        ids, _ = encode_chat(tokenizer, [{"role": "user", "content": document["question"]}], add_generation_prompt=True)
        document["question"] = tokenizer.decode(ids)
    results, samples = evaluate("local-completions", CHOOSING, documents, live.url, tmp_path)
    compared = 0
    for sample in samples:
        for argument, answered in zip(sample["arguments"].values(), sample["filtered_resps"], strict=True):
            context, answer = argument["arg_0"], argument["arg_1"]
            begin, ids = len(tokenizer.encode(context)), tokenizer.encode(context + answer)
            (nats,) = negative_log_likelihoods(model, [ids])
            assert float(answered[0]) == pytest.approx(-sum(nats[begin - 1 :]), abs=NATS), (context, answer)
            compared += 1
    print(f"{compared} log-likelihoods equal, accuracy {results['acc,none']}")
    assert compared == QUESTIONS * CHOICES
    assert results["acc,none"] >= 0.9


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_lm_eval_gets_the_answers_that_a_chat_gets(live, tmp_path):
    documents = [{**d, "answer": d["choices"][d["answer"]]} for d in draw_questions()]
    results, samples = evaluate(
        "local-chat-completions", ANSWERING, documents, live.url, tmp_path, "--apply_chat_template"
    )
    for document, sample in zip(documents, samples, strict=True):
        messages = [{"role": "user", "content": document["question"]}]
        found = live.ask(messages=messages, temperature=0, max_tokens=40, stop=["\n\n"]).json()
        assert sample["filtered_resps"] == [found["choices"][0]["message"]["content"]]
    print(f"{len(samples)} answers equal, {results['exact_match,none']} of them exact")
    assert len(samples) == QUESTIONS
