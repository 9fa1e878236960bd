"""`ling config`: what a preset, a recipe and overrides come to."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.table import Table


def config(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...")] = None,
    preset: Annotated[str | None, typer.Option(help="Named shape, such as ling_mini or tiny.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML recipe laid over the preset.")] = None,
    sequence_length: Annotated[int | None, typer.Option(min=1, help="Tokens per document, for FLOPs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the resolved configuration, its parameter counts and its FLOPs per token."""
    from ling.config.recipe import load_recipe, recipe_tree
    from ling.scaling.flops import count_flops
    from ling.scaling.parameters import count_parameters

    resolved = load_recipe(preset_name=preset, file=recipe, overrides=overrides or [])
    tree = recipe_tree(resolved)
    counts = count_parameters(resolved.model)
    flops = count_flops(resolved.model, sequence_length or min(4096, resolved.model.max_position_embeddings))
    if as_json:
        numbers = {"parameters": asdict(counts), "flops_per_token": asdict(flops)}
        numbers["flops_per_token"] |= {"forward": flops.forward, "training": flops.training}
        print(json.dumps({**tree, **numbers}, indent=2, allow_nan=False))
        return
    print(yaml.safe_dump(_plain(tree), sort_keys=False).rstrip())
    table = Table("what", "number", box=None, header_style="bold", pad_edge=False)
    table.columns[1].justify = "right"
    for name, count in asdict(counts).items():
        table.add_row(f"parameters: {name.replace('_', ' ')}", f"{count:,}")
    what = f"per token at {flops.sequence_length} tokens"
    table.add_row(f"FLOPs, forward, {what}", f"{flops.forward:,}")
    table.add_row(f"FLOPs, training with MTP, {what}", f"{flops.training:,}")
    print()
    Console(width=100).print(table)


def _plain(tree: object) -> object:
    """Turn tuples into lists, which YAML can say."""
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return [_plain(value) for value in tree] if isinstance(tree, list | tuple) else tree
