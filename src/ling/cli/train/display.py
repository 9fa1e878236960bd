"""The live line of a run on a terminal; a plain line now and then where there is none."""

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ling.config.recipe import Recipe
from ling.train.loop import StepReport

_PLAIN_SECONDS = 30


class Display:
    """Shows the smoothed numbers of the last steps."""

    SMOOTHED_STEPS = 50

    def __init__(self, console: Console, recipe: Recipe, done: int) -> None:
        self._console = console
        self._steps = recipe.train.steps
        columns = (
            MofNCompleteColumn(), BarColumn(bar_width=20), TextColumn("{task.fields[status]}"), TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = Progress(*columns, console=console, refresh_per_second=4, disable=not console.is_terminal)
        self._task = self._bar.add_task("train", total=self._steps, completed=done, status="")
        self._said = 0.0

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, recent: Sequence[StepReport]) -> None:
        last = recent[-1]
        self._bar.update(self._task, completed=last.step, status=status(recent))
        due = time.monotonic() - self._said > _PLAIN_SECONDS or last.step == self._steps
        if not self._console.is_terminal and due:
            self._said = time.monotonic()
            self._console.print(f"step {last.step}/{self._steps}  {status(recent)}")

    def say(self, text: str) -> None:
        self._console.print(text)


def status(recent: Sequence[StepReport]) -> str:
    """Return the smoothed numbers of the last steps on one line."""
    last, n = recent[-1], len(recent)
    loss = sum(r.loss for r in recent) / n
    speed = sum(r.tokens for r in recent) / sum(r.step_seconds for r in recent)
    mtp = f"  mtp {sum(r.mtp_losses[0] for r in recent) / n:.3f}" if last.mtp_losses else ""
    busiest = f"  busiest expert {1 + last.balance.max_violation:.1f}x mean" if last.balance else ""
    idle = f", {last.balance.dead_experts} idle" if last.balance else ""
    used = [r.mfu_percent for r in recent if r.mfu_percent is not None]
    mfu = f"  {sum(used) / len(used):.0f} % MFU" if used else ""
    return f"loss {loss:.3f}{mtp}  {speed:,.0f} tok/s{mfu}{busiest}{idle}"
