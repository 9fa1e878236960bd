"""Trainer, PEFT and TRL on our classes, run by test_trainers.py in their environment; writes what it saw as JSON.

python trainers.py trainer|peft|trl DIRECTORY WORK ANSWER.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import ling

assert ling.__version__

STEPS = 6


def main(what: str, directory: str, work: str, answer: str) -> None:
    torch.set_num_threads(1)
    found = {"trainer": with_trainer, "peft": with_peft, "trl": with_trl}[what](Path(directory), Path(work))
    Path(answer).write_text(json.dumps(found), encoding="utf-8")


def load(directory: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert type(model).__module__ == "ling.compat.hf.modeling", type(model)
    return model


def biases(model: Any) -> torch.Tensor:
    return torch.cat([buffer.flatten() for name, buffer in model.named_buffers() if "expert_bias" in name])


def conversations() -> list[list[dict[str, str]]]:
    """What the model has never heard, so that there is something to learn."""
    return [
        [
            {"role": "user", "content": f"Which colour has the door number {n}?"},
            {"role": "assistant", "content": f"Door {n} is {('green', 'blue', 'red')[n % 3]}."},
        ]
        for n in range(48)
    ]


def arguments(work: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(work), "max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 1e-3,
        "gradient_accumulation_steps": 2, "logging_steps": 1, "save_steps": STEPS // 2, "report_to": [],
        "use_cpu": True, "seed": 7, "lr_scheduler_type": "constant", "bf16": False, **more,
    }  # fmt: skip


def losses_of(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def with_trainer(directory: Path, work: Path) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    rows = []
    for messages in conversations():
        ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False)).input_ids
        rows.append({"input_ids": ids, "labels": ids, "attention_mask": [1] * len(ids)})
    data = datasets.Dataset.from_list(rows)

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in batch)
        fill = {"input_ids": tokenizer.pad_token_id, "labels": -100, "attention_mask": 0}
        padded = {key: [row[key] + [value] * (width - len(row[key])) for row in batch] for key, value in fill.items()}
        return {key: torch.tensor(value) for key, value in padded.items()}

    def train(name: str, resume: str | None = None, **more: Any) -> tuple[Any, Any]:
        model = load(directory)
        given = TrainingArguments(**arguments(work / name, **more))
        trainer = Trainer(
            model=model, args=given, train_dataset=data, data_collator=collate, processing_class=tokenizer
        )
        trainer.train(resume_from_checkpoint=resume)
        return model, trainer

    before = biases(load(directory))
    model, trainer = train("plain")
    _, recomputed = train("recomputed", gradient_checkpointing=True)
    resumed_model, resumed = train("resumed", resume=str(work / "plain" / f"checkpoint-{STEPS // 2}"))
    state, again = model.state_dict(), resumed_model.state_dict()
    model.save_pretrained(work / "final")
    return {
        "losses": losses_of(trainer), "recomputed": losses_of(recomputed), "resumed": losses_of(resumed),
        "farthest": max(float((state[name] - again[name]).abs().max()) for name in state),
        "biases_kept": bool(torch.equal(biases(model), before)),
        "saved": str(work / "final"),
    }  # fmt: skip


def with_peft(directory: Path, work: Path) -> dict[str, Any]:
    modules = ["query_key_value", "dense", "shared_experts.gate_proj"]
    stacks = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    return {
        "modules": adapted(directory, work / "modules", target_modules=modules),
        "experts": adapted(directory, work / "experts", target_modules=[], target_parameters=stacks),
    }


def adapted(directory: Path, work: Path, **targets: Any) -> dict[str, Any]:
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(3)
    model = get_peft_model(load(directory), LoraConfig(r=4, task_type="CAUSAL_LM", **targets))
    ids = torch.arange(3, 43).reshape(2, 20)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        same = torch.equal(model(input_ids=ids).logits, load(directory)(input_ids=ids).logits)
    optimizer, losses = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2), []
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    changed = sorted(name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name]))
    model.save_pretrained(work / "adapter")
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        loaded = PeftModel.from_pretrained(load(directory), work / "adapter")(input_ids=ids).logits
        merged = model.merge_and_unload()
        merged.save_pretrained(work / "merged")
        difference = float((merged(input_ids=ids).logits - expected).abs().max())
        reread = torch.equal(load(work / "merged")(input_ids=ids).logits, merged(input_ids=ids).logits)
    return {
        "same_at_start": same, "losses": losses, "changed": changed,
        "loaded_equal": bool(torch.equal(loaded, expected)), "merged_difference": difference,
        "merged_reread_equal": reread, "largest": float(expected.abs().max()),
    }  # fmt: skip


def with_trl(directory: Path, work: Path) -> dict[str, Any]:
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules=["query_key_value", "dense"])
    found = {
        "full": supervised(directory, work / "full"),
        "lora": supervised(directory, work / "lora", peft_config=lora),
        "recomputed": supervised(directory, work / "recomputed", settings={"gradient_checkpointing": True}),
        "answers": supervised(directory, work / "answers", settings={"assistant_only_loss": True}, marked=True),
    }
    try:
        supervised(directory, work / "unmarked", settings={"assistant_only_loss": True})
    except ValueError as error:
        found["unmarked"] = str(error)
    return found


def supervised(
    directory: Path, work: Path, *, settings: dict[str, Any] | None = None, marked: bool = False, **more: Any
) -> dict[str, Any]:
    """Fine-tune on conversations.

    marked  the template says which text is an answer, as `assistant_only_loss` needs; the published one does not
    """
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    if marked:
        tokenizer.chat_template = with_marks(tokenizer.chat_template)
    model = load(directory)
    given = {"gradient_checkpointing": False, **(settings or {})}
    trainer = SFTTrainer(
        model=model, args=SFTConfig(**arguments(work, save_steps=1000, max_length=256, **given)),
        train_dataset=datasets.Dataset.from_list([{"messages": messages} for messages in conversations()]),
        processing_class=tokenizer, **more,
    )  # fmt: skip
    before = biases(model)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    learnt = batch["labels"][0][batch["labels"][0] != -100].tolist()
    with torch.no_grad():
        ours = model(**batch)
        theirs = trainer.compute_loss(trainer.model, dict(batch))
    main = ours.loss - model.config.mtp_loss_scaling_factor * sum(ours.mtp_loss)
    trainer.train()
    return {
        "losses": losses_of(trainer), "loss": float(theirs), "our_loss": float(main),
        "learnt": tokenizer.decode(learnt), "biases_kept": bool(torch.equal(biases(trainer.model), before)),
    }  # fmt: skip


def with_marks(template: str) -> str:
    line = '{{- "<role>ASSISTANT</role>" + answer(message, loop.index0 > last.query) + "<|role_end|>" -}}'
    assert template.count(line) == 1
    return template.replace(
        line,
        '{{- "<role>ASSISTANT</role>" -}}{%- generation -%}'
        '{{- answer(message, loop.index0 > last.query) + "<|role_end|>" -}}{%- endgeneration -%}',
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
