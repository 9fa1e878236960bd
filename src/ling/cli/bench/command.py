"""`ling bench` and its three commands."""

import typer

from ling.cli.bench.latency import latency
from ling.cli.bench.serve import serve
from ling.cli.bench.throughput import throughput

app = typer.Typer(
    help="Measure a server, or the engine by itself.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
for command in (serve, latency, throughput):
    app.command()(command)
