"""`ling plan`: memory, speed and layouts of a training run, before there is a machine to try them on."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from ling.cli.plan_tables import print_plan, print_published, print_simulation
from ling.errors import ConfigError

if TYPE_CHECKING:
    from ling.config import ModelConfig
    from ling.scaling.hardware import Hardware
    from ling.scaling.precision import Precision
    from ling.scaling.search import Candidate, Plan
    from ling.train.plan.simulate import Simulation

PrecisionName = Literal["float32", "bfloat16", "megatron_bf16", "megatron_fp8"]


def plan(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...")] = None,
    preset: Annotated[str | None, typer.Option(help="Named shape, such as ling_mini or tiny.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML recipe laid over the preset.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Devices in all.")] = 1,
    gpu: Annotated[str, typer.Option(help="h100, h200, h800, a100, b200; cpu: this machine, measured.")] = "h100",
    sequence_length: Annotated[int | None, typer.Option(min=1, help="Tokens; the context up to 4096.")] = None,
    global_batch_size: Annotated[int | None, typer.Option(min=1, help="Sequences per step; 16 per device.")] = None,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Sequences per forward pass; searched.")] = None,
    precision: Annotated[
        PrecisionName | None, typer.Option(help="What is kept per weight: ours, or the published trainer's.")
    ] = None,
    shard: Annotated[int | None, typer.Option(min=1, help="Fix parallel.data_parallel_shard.")] = None,
    replicate: Annotated[int | None, typer.Option(min=1, help="Fix parallel.data_parallel_replicate.")] = None,
    expert: Annotated[int | None, typer.Option(min=1, help="Fix parallel.expert.")] = None,
    tensor: Annotated[int | None, typer.Option(min=1, help="Fix parallel.tensor.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Fix parallel.context.")] = None,
    pipeline: Annotated[int | None, typer.Option(min=1, help="Fix parallel.pipeline.")] = None,
    recompute: Annotated[
        Literal["none", "selective", "full"] | None, typer.Option(help="Fix what is computed twice.")
    ] = None,
    imbalance: Annotated[float, typer.Option(min=1.0, help="Rows of the busiest expert rank over the mean.")] = 1.0,
    top: Annotated[int, typer.Option(min=1, help="Layouts to show.")] = 8,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Build the best layout without data, for bytes.")
    ] = False,
    published: Annotated[bool, typer.Option("--published", help="Predict the published figures instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Predict memory per GPU and tokens per second, and find the layouts that fit."""
    fixed = {
        "data_parallel_shard": shard, "data_parallel_replicate": replicate, "expert": expert, "tensor": tensor,
        "context": context, "pipeline": pipeline, "recompute": recompute,
    }  # fmt: skip
    if published:
        others = (overrides, preset, recipe, sequence_length, global_batch_size, micro_batch, precision, simulate)
        if any(others) or any(fixed.values()) or (gpus, gpu, imbalance) != (1, "h100", 1.0):
            raise ConfigError("--published has models, GPUs and layouts of its own; it goes with --json alone")
        print_published(as_json)
        return
    from ling.config.recipe import load_recipe
    from ling.scaling.precision import PRECISIONS
    from ling.scaling.search import Request, search

    model = load_recipe(preset_name=preset, file=recipe, overrides=overrides or []).model
    device = _device(gpu)
    name = precision or ("float32" if gpu == "cpu" else "bfloat16")
    request = Request(
        gpus=gpus,
        sequence_length=sequence_length or min(4096, model.max_position_embeddings),
        global_batch_size=global_batch_size or 16 * gpus,
        micro_batch=micro_batch,
        fixed={key: value for key, value in fixed.items() if value is not None},
        imbalance=imbalance,
    )
    with Console(stderr=True).status("trying layouts"):
        found = search(model, request, PRECISIONS[name], device)
    chosen, simulated = _simulate(model, found, PRECISIONS[name]) if simulate else (None, None)
    if as_json:
        print(json.dumps(_as_tree(found, top, simulated), indent=2, allow_nan=False))
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
    """Simulate the best layout that today's code can build."""
    from ling.train.plan.sharding import why_not
    from ling.train.plan.simulate import simulate

    candidates = [*found.fitting, *found.too_large]
    chosen = next((c for c in candidates if why_not(c.layout) is None), None)
    if chosen is None:
        raise ConfigError(
            f"cannot simulate {why_not(candidates[0].layout)}; leave out --simulate, or fix the layout with "
            "--expert 1 --tensor 1 --context 1 --pipeline 1 --recompute none"
        )
    if chosen is not candidates[0]:
        print(
            f"simulating {chosen.layout}: not {candidates[0].layout}, {why_not(candidates[0].layout)}", file=sys.stderr
        )
    with Console(stderr=True).status(f"building {chosen.layout} without data"):
        return chosen, simulate(model, chosen.layout, chosen.work, precision)


def _as_tree(found: "Plan", top: int, simulated: "Simulation | None") -> dict[str, Any]:
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
        "fitting": [one(c) for c in found.fitting[:top]],
        "too_large": [one(c) for c in found.too_large[:top]],
        "simulated": None if simulated is None else dataclasses.asdict(simulated),
    }
