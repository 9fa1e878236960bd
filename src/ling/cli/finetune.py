"""`ling finetune`: what its data come to, and recipes of LLaMA-Factory as ours."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.text import Text

from ling.cli.demo.directory import RunDirectory
from ling.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ling.config.recipe import Recipe
    from ling.finetune.prepare import Prepared
    from ling.finetune.report import Report
    from ling.finetune.sequences import ChatSequences
    from ling.tokenizer import Tokenizer

DEFAULT_OUT = Path("runs/finetune")
_MOST_NAMES = 20


def finetune(
    what: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE|DATA|SECTION.KEY=VALUE]...", show_default=False)
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read the data, say what is learnt of them, and stop.")
    ] = False,
    samples: Annotated[int, typer.Option(min=0, help="Of --check: samples to print, what is learnt marked.")] = 0,
    show: Annotated[int, typer.Option(min=0, help="Of --check: skipped records to list.")] = 20,
    strict: Annotated[bool, typer.Option("--strict", help="Of --check: exit with 2 if a record is skipped.")] = False,
    sequence_length: Annotated[int, typer.Option(min=2, help="Of --check: tokens of a sequence.")] = 8192,
    as_json: Annotated[bool, typer.Option("--json", help="Of --check: print one JSON object.")] = False,
    convert: Annotated[
        Path | None, typer.Option(metavar="YAML", help="Print a recipe of LLaMA-Factory as ours, and stop.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Of --convert: GPUs that the recipe was meant for.")] = 1,
    out: Annotated[Path, typer.Option(help="Directory of the run.")] = DEFAULT_OUT,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard an interrupted run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")] = False,
) -> None:
    """Train a model on conversations: what its answers should be. --check looks at the data first.

    Data files end in .jsonl, .json or .parquet and stand for finetune.data.
    """
    if convert is not None:
        _print_converted(convert, gpus)
    elif check:
        _check(_recipe(what or []), sequence_length, samples, show, strict=strict, as_json=as_json)
    else:
        from ling.cli.train.command import begin

        file, overrides = _sort(what or [])
        run = RunDirectory(out, "finetune", DEFAULT_OUT, first=shlex.join(what or []) if not resume else "")
        if not resume:
            _check_whole(_recipe(what or []))
        begin(run, file, overrides, resume=resume, restart=restart, dry_run=dry_run)


def _check_whole(recipe: "Recipe") -> None:
    if not recipe.finetune.data:
        raise ConfigError("there is nothing to learn from: name data files (.jsonl, .json, .parquet), or finetune.data")
    if recipe.run.start_from is None:
        raise ConfigError(
            "fine-tuning begins with a model: name one with run.start_from (bundled: that in the package)"
        )


def _recipe(what: list[str]) -> "Recipe":
    """Resolve a recipe file, data files and overrides."""
    from ling.config.recipe import load_recipe

    file, overrides = _sort(what)
    return load_recipe(file=None if file is None else Path(file), overrides=overrides)


def _sort(what: list[str]) -> tuple[str | None, list[str]]:
    """Return the recipe and the overrides among words; data files go before those of the recipe."""
    from ling.data.records import SUFFIXES, kind_of

    overrides = [word for word in what if "=" in word]
    data = [word for word in what if "=" not in word and kind_of(word) in SUFFIXES]
    recipes = [word for word in what if "=" not in word and word not in data]
    if len(recipes) > 1:
        raise ConfigError(f"one recipe at a time, got {', '.join(recipes)}; data files end in {', '.join(SUFFIXES)}")
    if data:
        overrides.insert(0, f"finetune.data={json.dumps(data)}")
    return recipes[0] if recipes else None, overrides


def _check(recipe: "Recipe", sequence_length: int, samples: int, show: int, *, strict: bool, as_json: bool) -> None:
    from ling.checkpoint.hub import resolve_checkpoint
    from ling.cli.progress import progress_bar
    from ling.engine.bundled import bundled_directory
    from ling.finetune.prepare import prepare
    from ling.finetune.sequences import ChatSequences
    from ling.tokenizer import Tokenizer

    told = Console(stderr=True, highlight=False, soft_wrap=True)
    begin = recipe.run.start_from
    if begin is None:
        told.print("tokenizer: the bundled model's; for another, run.start_from=DIR|NAME", markup=False)
    tokenizer = Tokenizer.from_directory(bundled_directory() if begin is None else resolve_checkpoint(begin))
    with progress_bar("reading", in_bytes=True) as progress:
        prepared = prepare(recipe.finetune, tokenizer, sequence_length=sequence_length, progress=progress)
    sequences = ChatSequences(
        prepared.store, prepared.training, sequence_length=sequence_length, seed=recipe.train.seed,
        packing=recipe.finetune.packing,
    )  # fmt: skip
    if as_json:
        print(json.dumps(_tree(prepared.report, sequences), ensure_ascii=False))
    else:
        _print_report(prepared.report, sequences, show)
        _print_samples(prepared, tokenizer, samples)
    if strict and prepared.report.num_skipped:
        raise DataError(f"{prepared.report.num_skipped:,} of {prepared.report.read:,} records are skipped")


def _tree(report: "Report", sequences: "ChatSequences") -> dict[str, Any]:
    packing = {"sequences": len(sequences), "padding_percent": sequences.padding_percent}
    return report.tree() | packing | {"sequence_length": sequences.sequence_length}


def _print_report(report: "Report", sequences: "ChatSequences", show: int) -> None:
    out = Console(highlight=False, soft_wrap=True)

    def line(text: str) -> None:
        out.print(_printable(text), markup=False)

    learnt = 100 * report.learnt_tokens / report.tokens
    line(
        f"{report.read:,} records: {report.kept:,} samples, {report.num_skipped:,} skipped, {report.heldout:,} held out"
    )
    line(f"{report.tokens:,} tokens, {learnt:.1f} % learnt; the longest sample has {report.longest_tokens:,}")
    line(
        f"{len(sequences):,} sequences of {sequences.sequence_length:,} tokens an epoch, "
        f"{sequences.padding_percent:.1f} % of them empty"
    )
    for title, counts in (
        ("skipped", report.reasons), ("worth knowing, of samples that are kept", report.notes),
        ("keys that nothing reads", report.ignored_keys),
    ):  # fmt: skip
        if counts:
            line(f"\n{title}:")
            for name, count in counts.most_common(_MOST_NAMES):
                line(f"{count:>9,}  {name}")
            if len(counts) > _MOST_NAMES:
                line(f"           ... and {len(counts) - _MOST_NAMES:,} more; --json tells all")
    if report.skipped and show:
        line("")
        for one in report.skipped[:show]:
            line(str(one))
        if report.num_skipped > show:
            line(f"... and {report.num_skipped - show:,} more; --show and --json tell more")


def _print_samples(prepared: "Prepared", tokenizer: "Tokenizer", count: int) -> None:
    """Print samples as text; what is learnt is bold, and stands between >>> and <<< where nothing can be bold."""
    out = Console(highlight=False, soft_wrap=True)
    for sample in prepared.training[:count].tolist():
        document = prepared.store.document(sample)
        text = Text(f"\n--- {prepared.store.where(sample)}\n")
        start = 0
        for end in range(1, len(document.tokens) + 1):
            if end == len(document.tokens) or document.learnt[end] != document.learnt[start]:
                piece = _printable(tokenizer.decode(document.tokens[start:end]))
                if document.learnt[start]:
                    text.append(piece if out.is_terminal else f">>>{piece}<<<", "bold green")
                else:
                    text.append(piece, "dim")
                start = end
        out.print(text)


def _printable(text: str) -> str:
    """Take out what would move the cursor: it comes from a stranger's file."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def _print_converted(path: Path, gpus: int) -> None:
    from ling.finetune.llamafactory import read_llamafactory

    tree, notes = read_llamafactory(path, gpus)
    told = Console(stderr=True, highlight=False, soft_wrap=True)
    for note in notes:
        told.print(note, markup=False)
    print(yaml.safe_dump(tree, sort_keys=False).rstrip())
