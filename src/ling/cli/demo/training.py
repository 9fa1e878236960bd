"""Training with a live display, and the history that the report draws."""

from collections import deque
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ling.checkpoint.pieces import TOKENIZER_DIRECTORY
from ling.cli.demo.prepare import Prepared
from ling.config.recipe import Recipe
from ling.train.loop import StepReport, Training

_SMOOTHED_STEPS = 50


def train(recipe: Recipe, out: Path, prepared: Prepared, console: Console, *, resume: bool) -> Training:
    """Run the recipe in `out`; an interruption leaves a checkpoint that `resume` continues from."""

    def add_tokenizer(directory: Path) -> None:
        prepared.tokenizer.save(directory / TOKENIZER_DIRECTORY)

    training = Training(recipe, out, prepared.read_batches, add_tokenizer)
    done = training.resume() if resume else 0
    if done:
        console.print(f"continuing after step {done}")
    with _progress(console) as bar:
        task = bar.add_task("train", total=recipe.train.steps, completed=done, status="")
        recent: deque[StepReport] = deque(maxlen=_SMOOTHED_STEPS)
        for report in training.run():
            recent.append(report)
            bar.update(task, completed=report.step, status=_status(recent))
    if training.state.step < recipe.train.steps:
        console.print(
            f"[yellow]stopped at step {training.state.step} of {recipe.train.steps}: train.max_minutes "
            f"{recipe.train.max_minutes:g} is used up on this machine[/]"
        )
    return training


def _progress(console: Console) -> Progress:
    columns = (
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, refresh_per_second=4)


def _status(recent: deque[StepReport]) -> str:
    """Return the smoothed numbers of the last steps on one line."""
    last, n = recent[-1], len(recent)
    loss = sum(r.loss for r in recent) / n
    speed = sum(r.tokens for r in recent) / sum(r.step_seconds for r in recent)
    mtp = f"  mtp {sum(r.mtp_losses[0] for r in recent) / n:.3f}" if last.mtp_losses else ""
    busiest = f"  busiest expert {1 + last.balance.max_violation:.1f}x mean" if last.balance else ""
    idle = f", {last.balance.dead_experts} idle" if last.balance else ""
    return f"loss {loss:.3f}{mtp}  {speed:,.0f} tok/s{busiest}{idle}"
