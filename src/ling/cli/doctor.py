"""`ling doctor`: what is wrong with a checkpoint, and mending it."""

import json
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ling.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from ling.checkpoint.doctor import Finding, Severity

_INDENT = 9 * " "
_MOST_ROUNDS = 3
"""One fix can bring another trap to light, as a readable index does what the files lack."""
_COLOURS: "dict[Severity, str]" = {"error": "bold red", "warning": "yellow", "note": "dim"}


def doctor(
    checkpoint: Annotated[Path, typer.Argument(metavar="DIR|NAME", help="Hugging Face directory, or a hub's model.")],
    fix: Annotated[
        bool, typer.Option("--fix", help="Write every fix that needs no guess; originals stay as .bak.")
    ] = False,
    weights: Annotated[bool, typer.Option("--weights", help="Read every value too, not only headers.")] = False,
    compare: Annotated[
        str | None, typer.Option(metavar="URL|DIR", help="Continue prompts here and there, and say how far both agree.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Of --compare: a file, one prompt a line.")] = None,
    num_prompts: Annotated[int | None, typer.Option(min=1, help="Of --compare: only the first prompts.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of --compare: longest continuation.")] = 32,
    raw: Annotated[bool, typer.Option("--raw", help="Of --compare: continue text without the chat format.")] = False,
    model_name: Annotated[str | None, typer.Option(help="Of --compare: what the endpoint calls the model.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="Of --compare: file with the endpoint's key.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Of --compare: seconds to wait for an answer.")] = 60.0,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 2 for warnings too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Report every known trap of a checkpoint, each with its fix: config, index, headers, tokenizer, generation config.

    Exit code 0 unless there are errors; with --strict, unless there are errors or warnings.
    """
    from ling.checkpoint.doctor import examine, mend
    from ling.checkpoint.hub import resolve_checkpoint
    from ling.cli.compare import Question, agreement_json, print_agreement, read_prompts, run_comparison
    from ling.cli.progress import progress_bar

    if compare is None and (prompts or num_prompts or model_name or api_key_file or raw):
        raise ConfigError("--prompts, --num-prompts, --raw, --model-name and --api-key-file need --compare URL|DIR")
    question = None if compare is None else Question(
        prompts=read_prompts(prompts, num_prompts), max_tokens=max_tokens, raw=raw, model=model_name,
        api_key=_key(api_key_file), timeout=timeout,
    )  # fmt: skip
    directory = resolve_checkpoint(checkpoint)
    found = examine(directory)
    written: list[str] = []
    if fix and directory != checkpoint and _mendable(found):
        raise ConfigError(
            f"--fix: {checkpoint} lies in a hub's cache, which others read too; copy it (cp -rL {directory} MY_COPY) "
            "and mend the copy"
        )
    for _ in range(_MOST_ROUNDS if fix else 0):
        if not _mendable(found):
            break
        with progress_bar("rewriting weights", in_bytes=True) as progress:
            written += [name for name in mend(directory, found, progress) if name not in written]
        found = examine(directory)
    if weights:
        found = _with_weights(directory, found)
    agreement = tokenizer = None
    if not as_json:
        _print_findings(directory, found, written, tell_fix=not fix)
    if question is not None and not _bad(found, strict):
        agreement, tokenizer = run_comparison(directory, str(compare), question)
    if as_json:
        _print_json(directory, found, written, None if agreement is None else agreement_json(agreement, str(compare)))
    elif agreement is not None and tokenizer is not None and question is not None:
        print_agreement(agreement, tokenizer, str(compare), question.prompts)
    _verdict(directory, _bad(found, strict))
    if agreement is not None and agreement.complaint is not None:
        raise CheckpointError(f"{directory} beside {compare}: {agreement.complaint}")


def _with_weights(directory: Path, found: "list[Finding]") -> "list[Finding]":
    from ling.checkpoint.doctor import SEVERITIES, examine_weights
    from ling.cli.progress import progress_bar

    try:
        with progress_bar(f"reading the weights of {directory.name}") as progress:
            more = examine_weights(directory, progress)
    except CheckpointError:
        if any(finding.severity == "error" for finding in found):
            return found  # which say why
        raise
    return sorted([*found, *more], key=lambda finding: SEVERITIES.index(finding.severity))


def _print_json(directory: Path, found: "list[Finding]", written: list[str], comparison: dict[str, Any] | None) -> None:
    counts = Counter(finding.severity for finding in found)
    rows = [
        {
            "severity": f.severity, "check": f.check, "where": f.where, "what": f.what, "fix": f.fix,
            "fixable": f.repair is not None,
        }
        for f in found
    ]  # fmt: skip
    told: dict[str, Any] = {
        "directory": str(directory),
        "counts": {s: counts[s] for s in _COLOURS},
        "written": written,
        "findings": rows,
    }
    told |= {} if comparison is None else {"comparison": comparison}
    print(json.dumps(told, indent=2, ensure_ascii=False))


def _print_findings(directory: Path, found: "list[Finding]", written: list[str], *, tell_fix: bool) -> None:
    console = Console(highlight=False)
    for name in written:
        console.print(f"mended {name}", style="green")
    for f in found:
        console.print(Text.assemble((f"{f.severity:<9}", _COLOURS[f.severity]), f.where), soft_wrap=True)
        console.print(Text(_indented(f.what, console)), soft_wrap=True)
        if f.fix:
            remedy = f"fix: {f.fix}{' [--fix]' if f.repair is not None and tell_fix else ''}"
            console.print(Text(_indented(remedy, console)), soft_wrap=True)
    counts = Counter(finding.severity for finding in found)
    told = ", ".join(_count(counts[severity], severity) for severity in _COLOURS)
    mendable = sum(finding.repair is not None for finding in found)
    console.print(f"{directory}: {told}" + (f"; --fix mends {mendable}" if mendable else ""), soft_wrap=True)


def _indented(text: str, console: Console) -> str:
    """Return a paragraph that lines up under the file's name; one line if nobody looks, so that it can be searched."""
    width = console.width if console.is_terminal else sys.maxsize
    return textwrap.fill(text, width, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False)


def _mendable(found: "list[Finding]") -> bool:
    return any(finding.repair is not None for finding in found)


def _bad(found: "list[Finding]", strict: bool) -> "list[Finding]":
    worst = {"error", "warning"} if strict else {"error"}
    return [finding for finding in found if finding.severity in worst]


def _verdict(directory: Path, bad: "list[Finding]") -> None:
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise CheckpointError(f"{directory}: {bad[0].where}: {bad[0].what}{more}")


def _key(file: Path | None) -> str | None:
    try:
        return None if file is None else file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read --api-key-file {file}: {getattr(error, 'strerror', None) or error}") from None


def _count(number: int, severity: str) -> str:
    return f"{number} {severity}{'' if number == 1 else 's'}"
