"""Many steps: data in, reports out, checkpoints on the way, the mean of the last snapshots at the end."""

import logging
import os
import platform
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ling.checkpoint.background import BackgroundSaver
from ling.checkpoint.dcp import FACTS_NAME, DcpSource, save_dcp
from ling.config import write_published
from ling.config.recipe import Recipe, recipe_tree
from ling.errors import CheckpointError
from ling.model import CausalLM, init_weights
from ling.model.fp8 import Fp8Layers, Measured
from ling.parallel.ranks import Ranks
from ling.train.averaging import is_snapshot_step
from ling.train.batch import TrainBatch
from ling.train.files import (
    CHECKPOINTS_NAME,
    METRICS_NAME,
    checkpoint_path,
    checkpoint_step,
    latest_checkpoint,
    list_checkpoints,
    metrics_line,
    read_metrics,
    write_metrics,
)
from ling.train.interrupt import StopRequest, stop_on_signal
from ling.train.metrics import RouterTelemetry, router_telemetry, worst
from ling.train.state import TrainState, read_fact
from ling.train.step import train_step
from ling.train.stopwatch import Stopwatch
from ling.train.utilisation import Peak, step_flops
from ling.version import __version__

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepReport:
    """One line of `metrics.jsonl`, and the loads behind it."""

    step: int
    """Updates done, this one included."""
    loss: float
    mtp_losses: tuple[float, ...]
    mtp_correct_percent: tuple[float, ...]
    z_loss: float
    grad_norm: float
    lr: float
    tokens: int
    skipped: bool
    """Whether the update was thrown away (`optim.skip`)."""
    step_seconds: float
    mfu_percent: float | None
    """Of the peak of all devices; None where it is not known."""
    balance: RouterTelemetry | None
    """The worst layer's; None without sparse layers."""
    counts: dict[int, Tensor]
    fp8: Measured | None = None
    """What FP8 lost, at the steps that measure it."""

    def numbers(self) -> dict[str, float]:
        """Return what trackers draw, under stable names."""
        found = {
            "loss": self.loss, "z_loss": self.z_loss, "grad_norm": self.grad_norm, "lr": self.lr, "tokens": self.tokens,
            "tokens_per_second": self.tokens / self.step_seconds, "step_seconds": self.step_seconds,
            "skipped": float(self.skipped),
        }  # fmt: skip
        for depth, (loss, percent) in enumerate(zip(self.mtp_losses, self.mtp_correct_percent)):
            found |= {f"mtp/{depth}/loss": loss, f"mtp/{depth}/correct_percent": percent}
        if self.mfu_percent is not None:
            found["mfu_percent"] = self.mfu_percent
        if self.balance is not None:
            found |= {f"router/worst/{key}": float(value) for key, value in asdict(self.balance).items()}
        if self.fp8 is not None:
            found |= {
                "fp8/underflow_percent": self.fp8.underflow_percent,
                "fp8/distortion_percent": self.fp8.distortion_percent,
                "fp8/layers_in_bfloat16": float(len(self.fp8.bfloat16_layers)),
            }
        for layer, counts in self.counts.items():
            found |= {f"router/{layer}/{key}": float(v) for key, v in asdict(router_telemetry(counts)).items()}
        return found


class Training:
    """A run in a directory: `checkpoints/step_N/` and `metrics.jsonl`.

    read_batches  gives the microbatches of a step, counted from 0; the same ones every time it is asked
    finish        adds files (the tokenizer) to each checkpoint
    model         weights to begin with, on the device to train on; None: new ones, on the CPU
    data          fingerprint of what is read: a run that goes on with other data is refused; None: it cannot change
    peak          of this process's device, for utilisation; None: it is not reported
    ranks         those that `model` is laid out over, all of which run this; None: it is whole and here
    """

    def __init__(
        self,
        recipe: Recipe,
        directory: Path,
        read_batches: Callable[[int], Sequence[TrainBatch]],
        finish: Callable[[Path], None] | None = None,
        model: CausalLM | None = None,
        ranks: Ranks | None = None,
        data: str | None = None,
        peak: Peak | None = None,
    ) -> None:
        self.recipe = recipe
        self.directory = directory
        self.read_batches = read_batches
        self.finish = finish
        self.ranks = ranks
        self.data = data
        self.peak = peak
        self.is_first = ranks is None or ranks.is_first
        """Whether this process writes what is not sharded."""
        if model is None:
            model = init_weights(CausalLM(recipe.model), torch.Generator().manual_seed(recipe.train.seed))
            model.to(getattr(torch, recipe.optim.weights))
        self.device = model.model.norm.weight.device
        self.state = TrainState(model, recipe.optim, sharded=ranks is not None and ranks.shards, ranks=ranks)
        self.fp8 = Fp8Layers(model, recipe.train.fp8) if recipe.train.precision == "fp8" else None
        self.stopwatch = Stopwatch()
        self._saver = BackgroundSaver(together=self.state.sharded)
        self._saved_step: int | None = None
        """Whose checkpoint this run has written, or begun to write, or found; None: there is none yet."""
        self._clock = 0.0
        """The first rank's seconds as of the last step, by which all ranks decide."""

    @property
    def checkpoints(self) -> Path:
        return self.directory / CHECKPOINTS_NAME

    @property
    def metrics(self) -> Path:
        return self.directory / METRICS_NAME

    @property
    def seconds(self) -> float:
        """Wall time of the loop, checkpoints and earlier parts of a resumed run included."""
        return self.stopwatch.seconds

    def resume(self) -> int:
        """Take over the latest checkpoint, if there is one; return the number of updates done."""
        if (latest := latest_checkpoint(self.checkpoints)) is not None:
            source = DcpSource(latest)
            if (data := source.facts().get("data")) is not None and data != self.data:
                raise CheckpointError(
                    f"{latest} was trained on other data (or packed otherwise) than what is read now; restore the "
                    "files, or begin a new run from it with run.start_from"
                )
            self.state.restore(source)
            if self.fp8 is not None:
                self.fp8.restore(source.facts().get("fp8", []), str(latest / FACTS_NAME))
            self._saved_step = self.state.step
            self._clock = read_fact(source, "seconds", float)
            self.stopwatch = Stopwatch(self._clock)
        if self.is_first:
            self._truncate_metrics()
        return self.state.step

    def run(self) -> Iterator[StepReport]:
        """Do the remaining steps, reporting each; the weights end as the mean of the snapshots.

        Ctrl-C, SIGTERM and closing the iterator early leave a checkpoint of the last whole step; the first two then
        raise KeyboardInterrupt, of which SIGTERM's is `Terminated`. A step that diverges raises TrainingError and
        leaves the checkpoints before it.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        metrics = self.metrics if self.is_first else os.devnull
        with (
            open(metrics, "a", encoding="utf-8") as log, stop_on_signal() as stop, self.stopwatch.running(),
            self._saver,
        ):  # fmt: skip
            while self.state.step < self.recipe.train.steps and not self._out_of_time():
                report = self._step()
                log.write(_as_line(report))
                if self.state.step % self.recipe.train.checkpoint_every == 0:
                    log.flush()
                    self.save(in_background=self.recipe.run.save_in_background)
                try:
                    yield report
                except GeneratorExit:
                    self.saved()
                    raise
                if self._agree_to_stop(stop):
                    self.saved()
                    stop.obey()
            self.saved()
        self._average()

    def saved(self) -> Path:
        """Return the checkpoint of the current step, which is written unless it is there."""
        self._saver.wait()
        if self._saved_step != self.state.step:
            return self.save()
        return checkpoint_path(self.checkpoints, self.state.step)

    def save(self, *, in_background: bool = False) -> Path:
        """Write a checkpoint of the current step, and forget older ones that `run` does not keep.

        in_background  return at once; the directory appears when all of it is there. What stops it is raised by the
                       next call, or when the run ends
        """
        target = checkpoint_path(self.checkpoints, self.state.step)
        if in_background:
            self._saver.save(target, self.state.tensors(), self._facts(), finish=self.finish, then=self._forget_old)
        else:
            self._saver.wait()
            self._save_to(target)
            self._forget_old()
        self._saved_step = self.state.step
        return target

    def save_final(self, target: Path) -> None:
        """Write the finished (averaged) model as a checkpoint of its own."""
        self._save_to(target)

    def _forget_old(self) -> None:
        run = self.recipe.run
        for old in list_checkpoints(self.checkpoints)[: -run.keep_checkpoints] if self.is_first else ():
            if not run.keep_every or checkpoint_step(old) % run.keep_every:
                shutil.rmtree(old, ignore_errors=True)

    def _save_to(self, target: Path) -> None:
        tensors, sharded = self.state.tensors(), self.state.sharded
        save_dcp(target, tensors, self._facts(), overwrite=True, finish=self.finish, together=sharded)

    def _facts(self) -> dict[str, Any]:
        return {
            **self.state.facts(),
            **({} if self.fp8 is None else {"fp8": self.fp8.state()}),
            "seconds": self.seconds,
            "data": self.data,
            "versions": {"ling": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "model": write_published(self.recipe.model),
            "recipe": recipe_tree(self.recipe),
        }

    def _step(self) -> StepReport:
        start = time.perf_counter()
        batches = [batch.to(self.device) for batch in self.read_batches(self.state.step)]
        if self.fp8 is not None:
            self.fp8.begin(self.state.step)
        result = train_step(
            self.state.model, self.state.optimizer, batches, self.recipe, self.state.step, self.ranks,
            self.state.guard, self.state.frozen_biases, self.state.in_backward,
        )  # fmt: skip
        largest = None if self.ranks is None else self.ranks.largest
        measured = None if self.fp8 is None else self.fp8.judge(self.state.step, largest)
        self.state.step += 1
        seconds = time.perf_counter() - start
        if self.ranks is not None:
            self._clock = self.ranks.agree(False, self.seconds)[1]
        if is_snapshot_step(self.state.step, self.recipe.train, self._agreed_seconds):
            self.state.snapshots.add(self.state.model)
        return StepReport(
            step=self.state.step,
            loss=float(result.losses.main),
            mtp_losses=tuple(float(x) for x in result.losses.mtp),
            mtp_correct_percent=tuple(100 * float(x) for x in result.losses.mtp_correct_fraction),
            z_loss=float(result.losses.z_loss),
            grad_norm=float(result.grad_norm),
            lr=result.lr,
            tokens=result.tokens,
            skipped=result.skipped,
            step_seconds=seconds,
            mfu_percent=self._utilisation(batches, result.tokens, seconds),
            balance=worst({layer: router_telemetry(c) for layer, c in result.counts.items()}),
            counts=result.counts,
            fp8=measured,
        )

    def _utilisation(self, batches: Sequence[TrainBatch], tokens: int, seconds: float) -> float | None:
        if self.peak is None:
            return None
        ranks = 1 if self.ranks is None else self.ranks.layout.gpus
        lengths = [n for batch in batches for n in batch.attention.rows.lengths]
        return 100 * step_flops(self.recipe.model, lengths, tokens) / seconds / (self.peak.flops_per_second * ranks)

    def _out_of_time(self) -> bool:
        """Whether `max_minutes` is used up; a run does one step at least."""
        limit = self.recipe.train.max_minutes
        return bool(limit and self.state.step) and self._agreed_seconds > 60 * limit

    @property
    def _agreed_seconds(self) -> float:
        return self.seconds if self.ranks is None else self._clock

    def _agree_to_stop(self, stop: StopRequest) -> bool:
        """Whether this process, or that of any other rank, was asked to stop."""
        if self.ranks is not None and self.ranks.agree(stop.made is not None, 0.0)[0]:
            stop.made = stop.made or signal.SIGTERM  # another rank was
        return stop.made is not None

    def _average(self) -> None:
        """Overwrite the weights with the mean of the snapshots, if any were taken."""
        if self.recipe.train.average_last and not self.state.snapshots.count:
            logger.warning(
                "train.max_minutes %g ended the run before the first snapshot: the weights are those of the last step, "
                "not averaged",
                self.recipe.train.max_minutes,
            )
        self.state.snapshots.copy_to(self.state.model)

    def _truncate_metrics(self) -> None:
        """Drop lines of steps that the checkpoint does not know: they are going to be done again."""
        kept = [line for line in read_metrics(self.metrics) if line["step"] <= self.state.step]
        if len(kept) < self.state.step:
            logger.warning("%s holds only %d of the %d steps done", self.metrics, len(kept), self.state.step)
        if self.metrics.exists():
            write_metrics(self.metrics, kept)


def _as_line(report: StepReport) -> str:
    values = asdict(report)
    if report.fp8 is None:
        del values["fp8"]
    else:
        values["fp8"] = report.fp8._asdict()
    values["counts"] = {layer: counts.tolist() for layer, counts in report.counts.items()}
    return metrics_line(values)
