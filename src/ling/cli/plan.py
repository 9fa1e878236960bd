"""`ling plan`: memory, speed and layouts of a training run, before there is a machine to try them on."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from ling.cli.plan_tables import PLANNED_ONLY, print_plan, print_published, print_simulation
from ling.config.parallel import AXES
from ling.errors import ConfigError

if TYPE_CHECKING:
    from ling.config import ModelConfig
    from ling.scaling.hardware import Hardware
    from ling.scaling.precision import Precision
    from ling.scaling.search import Candidate, Plan
    from ling.train.plan.simulate import Simulation

PrecisionName = Literal["float32", "bfloat16", "fp8", "lora_fp8", "megatron_bf16", "megatron_fp8"]
_TRAINED = ("float32", "bfloat16", "fp8")
"""Those of `train.precision`."""


def plan(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...")] = None,
    preset: Annotated[str | None, typer.Option(help="Named shape, such as ling_mini or tiny.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML recipe laid over the preset.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Devices in all.")] = 1,
    gpu: Annotated[str, typer.Option(help="h100, h200, h800, a100, b200, rtx4090; cpu: this machine.")] = "h100",
    sequence_length: Annotated[int | None, typer.Option(min=1, help="Tokens; the context up to 4096.")] = None,
    global_batch_size: Annotated[int | None, typer.Option(min=1, help="Sequences per step; 16 per device.")] = None,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Sequences per forward pass; searched.")] = None,
    precision: Annotated[
        PrecisionName | None,
        typer.Option(help="What is kept per weight: ours; LoRA, only planned; or the published trainer's."),
    ] = None,
    imbalance: Annotated[float, typer.Option(min=1.0, help="Rows of the busiest expert rank over the mean.")] = 1.0,
    top: Annotated[int, typer.Option(min=1, help="Layouts to show.")] = 8,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Build the best layout without data, for bytes.")
    ] = False,
    published: Annotated[bool, typer.Option("--published", help="Predict the published figures instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Predict memory per GPU and tokens per second, and find the layouts that fit.

    Sizes in the section parallel of a recipe, or given as parallel.KEY=VALUE, are kept; those that are 0, or not
    given, are searched.
    """
    if published:
        others = (overrides, preset, recipe, sequence_length, global_batch_size, micro_batch, precision, simulate)
        if any(others) or (gpus, gpu, imbalance) != (1, "h100", 1.0):
            raise ConfigError("--published has models, GPUs and layouts of its own; it goes with --json alone")
        print_published(as_json)
        return
    from ling.config.checks import without_pieces
    from ling.config.recipe import given_keys, load_recipe
    from ling.scaling.layout import RECOMPUTE
    from ling.scaling.precision import (
        PRECISIONS,
        with_measuring,
        with_muon,
        with_release,
        with_row_multiple,
        with_states,
    )
    from ling.scaling.search import Request, search

    # A precision that is trained in is laid over the recipe, so that what training would refuse with it is refused.
    trained = [f"train.precision={precision}"] if precision in _TRAINED else []
    resolved = load_recipe(preset_name=preset, file=recipe, overrides=[*(overrides or []), *trained])
    given = given_keys(file=recipe, overrides=overrides or [])
    model, device = resolved.model, _device(gpu)

    def asked(key: str) -> Any:
        """Return a recipe's value if it was given, and is not the 0 that leaves the choice."""
        section, _, name = key.partition(".")
        return getattr(getattr(resolved, section), name) or None if key in given else None

    name = precision or asked("train.precision") or ("float32" if gpu == "cpu" else "bfloat16")
    held, optim = PRECISIONS[name], resolved.optim
    if {"optim.weights", "optim.moments"} & given:
        held = with_states(held, optim.weights, optim.moments, master=optim.master_weights)
    if resolved.optim.method == "muon":
        held = with_muon(held, resolved.optim.muon.chunk_mib)
    if resolved.optim.in_backward:
        held = with_release(held)
    if name == "fp8" and resolved.train.fp8.measure_every:
        held = with_measuring(held)
    held = with_row_multiple(held, resolved.train.fp8.row_multiple)
    sizes = {axis: asked(f"parallel.{axis}") for axis in (*AXES, "expert", "recompute")}
    if without_pieces(resolved):  # what training would refuse is not tried
        sizes = {"tensor": 1, "pipeline": 1} | {axis: size for axis, size in sizes.items() if size is not None}
    request = Request(
        gpus=gpus,
        sequence_length=sequence_length or asked("train.sequence_length") or min(4096, model.max_position_embeddings),
        global_batch_size=global_batch_size or asked("train.global_batch_size") or 16 * gpus,
        micro_batch=micro_batch or asked("train.micro_batch_size"),
        fixed={key: value for key, value in sizes.items() if value is not None},
        imbalance=imbalance,
        recompute=("none", "full") if name == "fp8" else RECOMPUTE,  # as `check_recipe` has it
    )
    with Console(stderr=True).status("trying layouts"):
        found = search(model, request, held, device)
    chosen, simulated = _simulate(model, found, held) if simulate else (None, None)
    if as_json:
        print(json.dumps(_as_tree(found, top, simulated, name), indent=2, allow_nan=False))
        return
    print_plan(model, found, request, device, name, top)
    if chosen is not None and simulated is not None:
        print_simulation(chosen, simulated)


def _device(gpu: str) -> "Hardware":
    from ling.scaling.hardware import hardware

    if gpu != "cpu":
        return hardware(gpu)
    from ling.train.plan.probe import probe_cpu

    return probe_cpu()


def _simulate(model: "ModelConfig", found: "Plan", precision: "Precision") -> "tuple[Candidate, Simulation]":
    """Simulate the best layout."""
    from ling.train.plan.simulate import simulate

    chosen = [*found.fitting, *found.too_large][0]
    with Console(stderr=True).status(f"building {chosen.layout} without data"):
        return chosen, simulate(model, chosen.layout, chosen.work, precision)


def _as_tree(found: "Plan", top: int, simulated: "Simulation | None", precision: str) -> dict[str, Any]:
    def one(c: "Candidate") -> dict[str, Any]:
        return {
            "layout": dataclasses.asdict(c.layout),
            "micro_batch": c.work.micro_batch,
            "microbatches": c.work.microbatches,
            "fits": c.fits,
            "peak_bytes": dataclasses.asdict(c.memory.peak) | {"total": c.memory.peak.total},
            "peak_moment": c.memory.moment,
            "resting_bytes": c.memory.resting.total,
            "tokens_per_second": c.step.tokens_per_second,
            "mfu_percent": c.step.mfu_percent,
            "seconds": c.step.terms,
            "bound_by": c.step.binding,
        }

    return {
        "precision": precision,
        "planned_only": PLANNED_ONLY.get(precision),
        "fitting": [one(c) for c in found.fitting[:top]],
        "too_large": [one(c) for c in found.too_large[:top]],
        "simulated": None if simulated is None else dataclasses.asdict(simulated),
    }
