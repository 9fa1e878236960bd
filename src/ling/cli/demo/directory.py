"""The directory of a run: whether a new one may begin there, and what an interrupted one left."""

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ling.errors import ConfigError
from ling.train.files import CHECKPOINTS_NAME, METRICS_NAME, checkpoint_step, latest_checkpoint

if TYPE_CHECKING:
    from ling.config.recipe import Recipe

DEFAULT_OUT = Path("runs/demo")
_SECTIONS = {"data", "model", "optim", "train"}
"""Of a stored recipe. Runs that began before another section came along go on with its defaults."""


class RunDirectory:
    """Where a run keeps its files. Nothing is written or moved before `begin`."""

    def __init__(self, out: Path, verb: str = "demo", default: Path = DEFAULT_OUT, *, first: str = "") -> None:
        self.path = out.resolve()
        self._verb = f"{verb} {first}" if first else verb
        """What a person types before the flags."""
        self.begun = False
        """Whether what is in here belongs to this run, rather than to one before it."""
        self._out_flag = "" if out == default else f" --out {shlex.quote(str(out))}"
        self.recipe = self.path / "recipe.json"
        self.tokenizer = self.path / "tokenizer"
        self.checkpoints = self.path / CHECKPOINTS_NAME
        self.metrics = self.path / METRICS_NAME
        self.final = self.path / "final"
        self.export = self.path / "export"
        self.report = self.path / "report.json"
        self.page = self.path / "report.html"

    def command(self, flag: str = "") -> str:
        """Return what a person types to come back here."""
        return f"ling {self._verb}{flag and ' '}{flag}{self._out_flag}"

    def read_recipe(self, overrides: Sequence[str] = ()) -> "Recipe":
        """Return the recipe that the run began with, overrides laid over it; CheckpointError if it is damaged."""
        from ling.checkpoint.source import read_json
        from ling.config.recipe import recipe_from_tree

        if not self.recipe.exists():
            raise ConfigError(f"there is no run to resume in {self.path}; start one with {self.command()}")
        tree = read_json(self.recipe)
        recipe = recipe_from_tree(tree, overrides)
        if lost := sorted(_SECTIONS - tree.keys()):
            raise ConfigError(f"{self.recipe} lacks {', '.join(lost)}; start anew with {self.command('--restart')}")
        self.begun = True
        return recipe

    def check_room(self, *, restart: bool) -> None:
        """Refuse a new run where an interrupted one, or something else, would be lost."""
        if self.recipe.exists():
            if self._is_interrupted() and not restart:
                raise ConfigError(
                    f"{self.path} holds an interrupted run: continue it with {self.command('--resume')}, "
                    "or discard it with --restart"
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise ConfigError(
                f"{self.path} is not empty and not a run of ling {self._verb.split()[0]}; choose another --out"
            )

    def begin(self, recipe: "Recipe") -> None:
        """Make room for a new run and write its recipe; a finished one stays beside it as NAME.previous."""
        from ling.config.recipe import recipe_tree

        if self.is_finished:
            previous = self.path.with_name(f"{self.path.name}.previous")
            shutil.rmtree(previous, ignore_errors=True)
            self.path.rename(previous)
        self._clear()
        self.path.mkdir(parents=True, exist_ok=True)
        self.recipe.write_text(json.dumps(recipe_tree(recipe), indent=2) + "\n", encoding="utf-8")
        self.begun = True

    def how_to_go_on(self) -> str:
        """Say what an interruption left on disk, and what to type next."""
        if not self.begun:
            return f"nothing had been written yet; start again with {self.command()}"
        if (latest := latest_checkpoint(self.checkpoints)) is None:
            return f"no checkpoint had been written yet; {self.command('--resume')} starts from the beginning"
        return f"continue after step {checkpoint_step(latest)} with {self.command('--resume')}"

    @property
    def is_finished(self) -> bool:
        """Whether the run got to its end: a demo to its report, training to its last checkpoint."""
        return self.report.exists() or (not self._verb.startswith("demo") and self.final.exists())

    def _is_interrupted(self) -> bool:
        """Whether there are steps in here, of a run that did not get to its end."""
        if self.is_finished:
            return False
        return latest_checkpoint(self.checkpoints) is not None or (
            self.metrics.exists() and self.metrics.stat().st_size > 0
        )

    def _clear(self) -> None:
        """Remove what a run leaves, and nothing else."""
        own = (self.tokenizer, self.checkpoints, self.final, self.export, self.path / "exports", self.path / "profile")
        for directory in (*own, *self.path.glob(".*.partial-*")):
            shutil.rmtree(directory, ignore_errors=True)
        for file in (self.metrics, self.path / "evaluations.jsonl", self.report, self.page, self.recipe):
            file.unlink(missing_ok=True)
