"""`ling download`: a published checkpoint into its hub's cache."""

from typing import Annotated

import typer
from rich.console import Console

from ling.errors import ConfigError


def download(
    name: Annotated[str | None, typer.Argument(help="Model's name, such as inclusionAI/Ling-mini-2.0.")] = None,
    hub: Annotated[str, typer.Option("--from", help="hf (Hugging Face) or modelscope.")] = "hf",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; left out: the newest.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every file with the hub's hash.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Use no network: only look into the cache.")] = False,
    known: Annotated[bool, typer.Option("--list", help="Print the published names.")] = False,
) -> None:
    """Download what is needed of a checkpoint, and print where it lies: no code, no pickles, no second copy of weights.

    What is in the cache already is not downloaded again, and an interrupted download goes on. Every command that takes
    a checkpoint takes such a name too.
    """
    from ling.checkpoint.hub import PUBLISHED, verify_snapshot
    from ling.checkpoint.hub import download as bring
    from ling.cli.progress import progress_bar

    if known:
        for published, what in PUBLISHED.items():
            print(f"{published:<36}{what}")
        return
    if name is None:
        raise ConfigError("give a model's name, such as inclusionAI/Ling-mini-2.0; --list prints those published")
    directory, listing = bring(name, hub=hub, revision=revision, offline=offline)
    if verify:
        with progress_bar(f"verifying {name}", in_bytes=True) as progress:
            count = verify_snapshot(directory, listing, progress)
        if not count:
            raise ConfigError(f"--verify: nothing is known of the hashes of {name} here; run it with a network")
        Console(stderr=True, highlight=False).print(f"{count} files are what the hub has", soft_wrap=True)
    print(directory)
