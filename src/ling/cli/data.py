"""`ling data`: text to token files, and what is in one."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ling.cli.progress import progress_bar
from ling.errors import ConfigError

if TYPE_CHECKING:
    from ling.tokenizer import Tokenizer

app = typer.Typer(
    help="Make and inspect token files, which `ling train data.files=[...]` reads.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_MOST_SOURCES = 8


@app.command()
def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="jsonl, json, parquet, txt; directories; hf://OWNER/NAME[@REVISION][/PATH]."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    tokenizer: Annotated[str, typer.Option(help="Directory, checkpoint, hub name, or bundled.")] = "bundled",
    key: Annotated[str, typer.Option(help="Where a record has its text.")] = "text",
    subset: Annotated[str | None, typer.Option(help="Of a data set on the hub; left out: its default one.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a data set on the hub; left out: train.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Take data sets from the hub's cache alone.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that tokenise; 0: this one.")] = 0,
    end_of_document: Annotated[bool, typer.Option(help="Append the end-of-document token to each.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Tokenise text into OUT/tokens.bin and tokens.idx, Megatron's format, with the tokenizer beside them.

    A record's text is one document, and so is a txt file. Nothing is left behind if it is interrupted, but what was
    downloaded is kept in the hub's cache.
    """
    from ling.checkpoint.atomic import atomic_directory, check_free
    from ling.data.prepare_tokens import Tokenize, prepare_tokens
    from ling.data.token_file import TOKENIZER_NAME

    check_free(out, overwrite=overwrite)
    chosen = _tokenizer(tokenizer)
    files, names = _find(sources, subset, split, offline=offline)
    with atomic_directory(out, overwrite=overwrite) as partial, progress_bar("tokenising", in_bytes=True) as progress:
        work = Tokenize(chosen, key, end_of_document)
        done = prepare_tokens(files, partial, work, workers=workers, progress=progress, names=names)
        (partial / TOKENIZER_NAME).mkdir()
        chosen.save(partial / TOKENIZER_NAME)
    print(f"{done.documents:,} documents, {done.tokens:,} tokens", file=sys.stderr)
    for reason, count in done.left_out.items():
        print(f"left out: {count:,} records: {reason}", file=sys.stderr)
    print(out)


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="What `ling data prepare` wrote, or Megatron's .bin or .idx.")],
    show: Annotated[int, typer.Option(min=0, help="Documents to print.")] = 2,
    tokenizer: Annotated[str | None, typer.Option(help="To print text with; the file's own, if it has one.")] = None,
) -> None:
    """Print how many documents and tokens a token file has, and how the first ones begin."""
    from ling.data.token_file import TokenFile
    from ling.tokenizer import Tokenizer

    found = TokenFile(file)
    mean = found.num_tokens / max(1, found.num_documents)
    print(f"documents:  {found.num_documents:,}")
    print(f"tokens:     {found.num_tokens:,} ({found.dtype}), {mean:,.1f} per document")
    for what in ("sources", "left_out"):
        if told := found.facts.get(what):
            more = len(told) - _MOST_SOURCES if isinstance(told, list) else 0
            shown = f"{told[:_MOST_SOURCES]} and {more:,} more" if more > 0 and isinstance(told, list) else told
            print(f"{what.replace('_', ' ')}: {shown}")
    own = None if found.tokenizer is None else Tokenizer.from_directory(found.tokenizer)
    reader = own if tokenizer is None else _tokenizer(tokenizer)
    for document in range(min(show, found.num_documents)):
        ids = found.tokens[found.start(document) : min(found.start(document) + 64, found.start(document + 1))].tolist()
        shown = ids if reader is None else repr(reader.decode(ids))
        print(f"document {document}: {shown}")


def _find(sources: list[str], subset: str | None, split: str | None, *, offline: bool) -> tuple[list[Path], list[str]]:
    """Return the files that sources come to and what each is called; those that lie here are looked for first."""
    from ling.data.hub import PREFIX, fetch_texts
    from ling.data.prepare_tokens import find_texts

    if address := next((source for source in sources if "://" in source and not source.startswith(PREFIX)), None):
        raise ConfigError(f"{address}: addresses are not read; a data set on Hugging Face is {PREFIX}OWNER/NAME")
    here = {source: find_texts([Path(source)]) for source in sources if not source.startswith(PREFIX)}
    if len(here) == len(set(sources)) and (subset or split or offline):
        raise ConfigError(f"--subset, --split and --offline are for data sets on the hub, {PREFIX}OWNER/NAME")
    files: list[Path] = []
    names: list[str] = []
    for source in sources:
        if source in here:
            files += here[source]
            names += [file.name for file in here[source]]
        else:
            found = fetch_texts(source, subset=subset, split=split, offline=offline)
            files += found.files
            names += found.names
    return files, names


def _tokenizer(name: str) -> "Tokenizer":
    from ling.checkpoint.hub import resolve_checkpoint
    from ling.checkpoint.pieces import open_pieces
    from ling.engine.bundled import bundled_directory
    from ling.tokenizer import Tokenizer

    if name == "bundled":
        return Tokenizer.from_directory(bundled_directory())
    if (Path(name) / "tokenizer.json").is_file():
        return Tokenizer.from_directory(Path(name))
    files = [f for f in open_pieces(resolve_checkpoint(name)).tokenizer_files() if f.name == "tokenizer.json"]
    if not files:
        raise ConfigError(f"{name} has no tokenizer.json; name a directory that has one with --tokenizer")
    return Tokenizer.from_directory(files[0].parent)
