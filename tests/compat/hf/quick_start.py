"""The published quick start, run by test_quick_start.py where ling is not installed.

python quick_start.py transformers|modelscope DIRECTORY ANSWER.json
"""

import importlib
import importlib.util
import json
import sys
from typing import Any

import torch

PROMPTS = (
    "Give me a short introduction to large language models.",
    "What is the capital of France?",
    "What is 12 plus 30?",
    "你好！你是谁？",
    "Tell me a story about a fox.",
    "Which is larger, 17 or 71?",
    "Hello!",
    "Who wrote Emma?",
)


def main(library: str, model_name: str, answer: str) -> None:
    assert importlib.util.find_spec("ling") is None, "ling must not be importable here"
    names = importlib.import_module(library)
    AutoModelForCausalLM, AutoTokenizer = names.AutoModelForCausalLM, names.AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_name, dtype="auto", device_map="auto", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    answers = [answer_of(model, tokenizer, prompt) for prompt in PROMPTS]

    found = {
        "versions": {name: importlib.import_module(name).__version__ for name in {library, "transformers", "torch"}},
        "module": type(model).__module__,
        "answers": answers,
        "logits": logits(model, answers[0]["prompt_ids"]),
        "padded": padded(model, tokenizer, [a["prompt_ids"] for a in answers]),
    }
    with open(answer, "w", encoding="utf-8") as file:
        json.dump(found, file)


def answer_of(model: Any, tokenizer: Any, prompt: str) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": "You are Ling, an assistant created by inclusionAI"},
        {"role": "user", "content": prompt},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    model_inputs = tokenizer([text], return_tensors="pt", return_token_type_ids=False).to(model.device)
    generated_ids = model.generate(**model_inputs, max_new_tokens=512)
    generated_ids = [
        output_ids[len(input_ids) :] for input_ids, output_ids in zip(model_inputs.input_ids, generated_ids)
    ]
    response = tokenizer.batch_decode(generated_ids, skip_special_tokens=True)[0]
    return {
        "prompt_ids": model_inputs.input_ids[0].tolist(), "ids": generated_ids[0].tolist(), "text": response,
    }  # fmt: skip


def padded(model: Any, tokenizer: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Generate for all prompts in one batch, padded on the left."""
    tokenizer.padding_side = "left"
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    width = batch["input_ids"].shape[1]
    ids = model.generate(**batch, max_new_tokens=512)[:, width:].tolist()
    return [[*row] for row in ids]


def logits(model: Any, prompt: list[int]) -> list[list[float]]:
    with torch.no_grad():
        found: list[list[float]] = model(input_ids=torch.tensor([prompt])).logits[0].tolist()
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
