"""The stages of a demo, one after the other, each timed; what they found becomes the report."""

import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ling.cli.demo.directory import RunDirectory
from ling.cli.demo.evaluate import (
    Speculation,
    compare_speculation,
    gated_percent,
    measure_text,
    run_tasks,
)
from ling.cli.demo.export import export_all
from ling.cli.demo.prepare import prepare
from ling.cli.demo.report import write_report
from ling.cli.demo.training import train
from ling.config.recipe import Recipe, recipe_tree
from ling.data.dialogues import answer_text
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams
from ling.errors import CheckpointError
from ling.eval.tasks import TaskResult
from ling.scaling.parameters import count_parameters
from ling.train.files import read_metrics
from ling.version import __version__

SAMPLE_PROMPTS = (
    "Who are you?",
    "Good morning!",
    "你好！你是谁？",
    "What is the capital of France?",
    "法国的首都是哪里？",
    "Tell me a story about Lily and a frog.",
)
LONGEST_MINUTES = 8.0
GATED_PERCENT = 90.0
FP8_TOLERANCE_PERCENT = 1.0


class Stages:
    """Times named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def run_pipeline(recipe: Recipe, run: RunDirectory, console: Console, *, resume: bool) -> tuple[dict[str, Any], LLM]:
    """Do everything; return the report and the engine over the BF16 export."""
    # One thread gives the same bits with any number of cores. A second one would gain little on tensors this small,
    # and on a busy machine the two wait for each other.
    torch.set_num_threads(1)
    stages = Stages()
    with stages.stage("tokenizer and books"), console.status("training a tokenizer, reading the books"):
        prepared = prepare(recipe, run.tokenizer if resume else None)
        if not resume:
            run.begin(recipe)
        prepared.keep_tokenizer(run.tokenizer)
    with stages.stage("training"):
        training = train(recipe, run.path, prepared, console, resume=resume)
    history = _read_history(run)
    stages.seconds["training"] = max(stages.seconds["training"], training.seconds)  # earlier parts of a resumed run
    with (
        stages.stage("checkpoint, conversion, checks"),
        console.status("writing and checking FP32, BF16 and FP8"),
    ):
        training.save_final(run.final)
        exported = export_all(run.final, run.export)
    llm = LLM(exported["bfloat16"].model, prepared.tokenizer)
    with stages.stage("held-out tasks"), console.status("answering held-out prompts"):
        tasks = run_tasks(llm, recipe.data.dialogue_level)
    with stages.stage("held-out text"), console.status("reading held-out text"):
        text = measure_text(exported, prepared)
    with stages.stage("speculation"), console.status("decoding with and without drafting"):
        speculation = compare_speculation(llm) if recipe.model.num_nextn_predict_layers else None
        samples = _samples(llm)
    report = {
        "when": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["ling", *sys.argv[1:]]),
        "machine": {"cpu": _cpu_name(), "threads": torch.get_num_threads(), "cores": os.cpu_count()},
        "versions": {"ling": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "recipe": recipe_tree(recipe),
        "model": _model_numbers(recipe),
        "training": _training_numbers(history, training.state.snapshots.count),
        "tasks": [_task_row(t) for t in tasks],
        "gated_percent": gated_percent(tasks),
        "bits_per_byte": text,
        "exports": [e.summary() for e in exported.values()],
        "speculation": None if speculation is None else _speculation_row(speculation),
        "samples": samples,
        "seconds": {**stages.seconds, "in all": sum(stages.seconds.values())},
    }
    report["promises"] = _promises(report)
    write_report(run, report, history)
    return report, llm


def _read_history(run: RunDirectory) -> list[dict[str, Any]]:
    if not (history := read_metrics(run.metrics)):
        raise CheckpointError(
            f"{run.metrics} holds no steps of a run that has done them all; "
            f"bring it back, or start anew with {run.command('--restart')}"
        )
    return history


def _promises(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what the demo undertakes, what was measured, and whether it held."""
    text = report["bits_per_byte"]
    minutes = report["seconds"]["in all"] / 60
    loss_percent = 100 * (text["float8"] / text["bfloat16"] - 1)
    rows: list[tuple[str, str, str, bool]] = [
        (
            "200 held-out prompts on what was taught",
            f"{report['gated_percent']:.1f} %",
            f"at least {GATED_PERCENT:.0f} %",
            report["gated_percent"] >= GATED_PERCENT,
        ),
        (
            "held-out real text, bits per byte",
            f"{text['bfloat16']:.3f}",
            f"below {text['byte_ngram_2']:.3f} (order-2 bytes)",
            text["bfloat16"] < text["byte_ngram_2"],
        ),
        (
            "FP8 against BF16, bits per byte",
            f"{loss_percent:+.2f} %",
            f"within {FP8_TOLERANCE_PERCENT:.0f} %",
            abs(loss_percent) <= FP8_TOLERANCE_PERCENT,
        ),
    ]
    if report["speculation"]:
        same = report["speculation"]["same_text"]
        rows.append(("same text with MTP drafting", "yes" if same else "no", "yes", same))
    if report["recipe"]["train"]["max_minutes"]:  # a recipe without a limit promises no time
        rows.append(
            ("time in all", f"{minutes:.1f} min", f"under {LONGEST_MINUTES:.0f} min", minutes < LONGEST_MINUTES)
        )
    return [{"what": w, "measured": m, "bound": b, "held": bool(h)} for w, m, b, h in rows]


def _samples(llm: LLM) -> list[dict[str, str]]:
    prompts = [[{"role": "user", "content": text}] for text in SAMPLE_PROMPTS]
    answers = llm.chat(prompts, SamplingParams(temperature=0, max_tokens=120))
    return [{"prompt": p, "answer": a.outputs[0].text} for p, a in zip(SAMPLE_PROMPTS, answers, strict=True)]


def _task_row(result: TaskResult) -> dict[str, Any]:
    first = result.dialogues[0]
    return {
        "task": result.task,
        "correct": result.correct,
        "total": result.total,
        "percent": result.correct_percent,
        "prompt": first.prompt[-1]["content"],
        "answer": result.answers[0],
        "right_answer": answer_text(first),
    }


def _speculation_row(speculation: Speculation) -> dict[str, Any]:
    return {
        "prompts": speculation.prompts,
        "tokens": speculation.tokens,
        "same_text": speculation.same_text,
        "acceptance_percent": speculation.acceptance_percent,
        "tokens_per_second_plain": speculation.tokens_per_second_plain,
        "tokens_per_second_drafting": speculation.tokens_per_second_drafting,
        "speedup": speculation.speedup,
    }


def _model_numbers(recipe: Recipe) -> dict[str, str]:
    model, counts = recipe.model, count_parameters(recipe.model)
    return {
        "parameters": f"{counts.total_with_mtp:,}",
        "of them in MTP": f"{counts.total_with_mtp - counts.total:,}",
        "activated per token, without embedding and head": f"{counts.activated_without_embedding_and_head:,}",
        "experts per token": f"{model.num_experts_per_tok} of {model.num_experts}, and a shared one"
        if model.first_k_dense_replace < model.num_hidden_layers
        else "none",
        "layers": f"{model.num_hidden_layers}, the first {model.first_k_dense_replace} dense; "
        f"{model.num_nextn_predict_layers} MTP",
        "hidden size": str(model.hidden_size),
        "vocabulary": f"{model.vocab_size:,}",
    }


def _training_numbers(history: list[dict[str, Any]], snapshots: int) -> dict[str, Any]:
    tokens, seconds = sum(h["tokens"] for h in history), sum(h["step_seconds"] for h in history)
    return {
        "steps": len(history),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "snapshots": snapshots,
        "last_loss": history[-1]["loss"],
        "last_balance": history[-1]["balance"],
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
