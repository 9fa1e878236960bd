"""`ling`: its commands, and what becomes of errors.

Data goes to stdout, messages to stderr. Exit codes: 0 done, 1 our bug (with a traceback), 2 a mistake that the one
line on stderr says how to mend, 130 interrupted.
"""

import errno
import io
import logging
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler

from ling.cli.bench.command import app as bench
from ling.cli.chat import chat
from ling.cli.config import config
from ling.cli.convert import convert
from ling.cli.data import app as data
from ling.cli.demo.command import demo
from ling.cli.doctor import doctor
from ling.cli.download import download
from ling.cli.export import export
from ling.cli.finetune import finetune
from ling.cli.generate import generate
from ling.cli.merge import merge
from ling.cli.plan import plan
from ling.cli.plot import plot
from ling.cli.serve.command import serve
from ling.cli.serve.several import ServeCommand
from ling.cli.train.command import train
from ling.errors import LingError
from ling.version import __version__

app = typer.Typer(
    help="The Ling 2.0 system: train, convert and talk to a sparse mixture-of-experts language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    demo, train, finetune, plan, plot, chat, generate, serve, convert, merge, export, doctor, download, config,
):  # fmt: skip
    app.command(cls=ServeCommand if command is serve else None)(command)
app.add_typer(data, name="data")
app.add_typer(bench, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print it."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Say more, such as which kernels are chosen."),
) -> None:
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("ling").setLevel(level)


def main() -> None:
    """Run the command line; the entry point of the `ling` script and of `python -m ling`.

    Typer itself handles misspelt commands and options (2), Ctrl-C (130) and a reader that hangs up (1, silently).
    """
    run(app, "ling")


def run(command: Callable[[], object], name: str) -> None:
    """Run a program called `name`; a person's mistake ends it with one line and 2, an interruption with 130."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows another
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that files half written are cleared away
    try:
        command()
    except LingError as error:
        _refuse(name, str(error))
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        _refuse(name, f"{error.filename or 'cannot write'}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)


def _refuse(name: str, reason: str) -> NoReturn:
    # It may quote a stranger's file: nothing in it moves the cursor.
    print(f"{name}: " + "".join(c if c.isprintable() or c == "\n" else "?" for c in reason), file=sys.stderr)
    sys.exit(2)
