"""What `ling plan` prints."""

import dataclasses
import json
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ling.config import ModelConfig
    from ling.scaling.hardware import Hardware
    from ling.scaling.search import Candidate, Plan, Request
    from ling.train.plan.simulate import Simulation

PLANNED_ONLY = {
    "lora_fp8": "The trainer has no LoRA yet: this says what it would take, beside weights of blocks in FP8.",
}
"""By precision, what is to be known of one that nothing trains in."""
_GIB, _MIB = 2**30, 2**20
_CATEGORIES = {
    "adapters": "LoRA with its gradients and moments",
    "copies": "FP8 copies of the weight at hand",
    "master": "master weights",
    "gathered": "gathered weights, with their gradients",
    "dense": "activations, dense blocks",
    "sparse": "activations, blocks with experts",
    "mtp": "activations, MTP",
    "loss": "loss, a chunk of logits",
    "dispatch": "dispatch between expert ranks",
    "working": "the operation at hand",
}


def print_plan(
    model: "ModelConfig", found: "Plan", request: "Request", device: "Hardware", precision: str, top: int
) -> None:
    """Print the layouts that fit, the first of them in detail, and why others do not."""
    from ling.scaling.parameters import count_parameters

    console = Console(width=120, highlight=False)
    console.print(
        f"{count_parameters(model).total_with_mtp:,} parameters, {precision}, on {request.gpus} x "
        f"{device.name}: {request.global_batch_size} sequences of {request.sequence_length} per step.\n"
        f"{device.usable_bytes / _GIB:.1f} of {device.memory_gib:.1f} GiB are for tensors. "
        "Predictions, not measurements."
    )
    if precision in PLANNED_ONLY:
        console.print(PLANNED_ONLY[precision])
    if found.fitting:
        console.print(_layouts(found.fitting[:top]))
        best = found.fitting[0]
        console.print(f"\nMemory of the first at its fullest, {best.memory.moment}:")
        console.print(_memory(best))
        console.print("\nTime of a step:")
        console.print(_time(best))
    if (more := len(found.fitting) - top) > 0:
        console.print(f"\n{more} more fit; --top shows them.")
    if found.too_large:
        console.print(f"\nDo not fit, the nearest first ({len(found.too_large)} in all):")
        for candidate in found.too_large[:top]:
            console.print("  " + _why(candidate, device))
    if not found.fitting:
        console.print(
            "\nNothing fits. More GPUs, shorter sequences, or --precision with fewer bytes per weight may help."
        )


def _layouts(candidates: "list[Candidate]") -> Table:
    word, unit = _unit(max(c.memory.peak.total for c in candidates))
    table = _table("layout", "recompute", "micro-batch", word, "tokens/s", "per GPU", "MFU %", "bound by")
    for column in table.columns[2:7]:
        column.justify = "right"
    for c in candidates:
        table.add_row(
            str(c.layout),
            c.layout.recompute,
            f"{c.work.micro_batch} x {c.work.microbatches}",
            f"{c.memory.peak.total / unit:.1f}",
            f"{c.step.tokens_per_second:,.0f}",
            f"{c.step.tokens_per_second_per_gpu:,.0f}",
            f"{c.step.mfu_percent:.1f}",
            c.step.binding.replace("_", " "),
        )
    return table


def _memory(candidate: "Candidate") -> Table:
    peak = candidate.memory.peak
    word, unit = _unit(peak.total)
    table = _table("category", word)
    table.columns[1].justify = "right"
    for field in dataclasses.fields(peak):
        if amount := getattr(peak, field.name):
            table.add_row(_CATEGORIES.get(field.name, field.name), f"{amount / unit:.2f}")
    table.add_row("in all", f"{peak.total / unit:.2f}")
    table.add_row("between steps", f"{candidate.memory.resting.total / unit:.2f}")
    return table


def _unit(largest: float) -> tuple[str, int]:
    """Return the unit that shows a column whose largest entry is this."""
    return ("GiB", _GIB) if largest >= _GIB else ("MiB", _MIB)


def _time(candidate: "Candidate") -> Table:
    from ling.scaling.roofline import TERMS

    table = _table("term", "ms", "%")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, seconds in sorted(candidate.step.terms.items(), key=lambda item: -item[1]):
        if seconds:
            share = 100 * seconds / candidate.step.seconds
            table.add_row(
                f"{name.replace('_', ' ')}: {TERMS[name]}",
                f"{1000 * seconds:,.3g}" if seconds < 0.1 else f"{1000 * seconds:,.0f}",
                f"{share:.1f}",
            )
    return table


def _why(candidate: "Candidate", device: "Hardware") -> str:
    from ling.scaling.held import largest_categories

    peak = candidate.memory.peak
    named = ", ".join(f"{_CATEGORIES.get(k, k)} {v / _GIB:.1f}" for k, v in largest_categories(peak))
    return (
        f"{candidate.layout}: needs {peak.total / _GIB:.1f} GiB with recompute {candidate.layout.recompute}, "
        f"{(peak.total - device.usable_bytes) / _GIB:.1f} too many; {named}"
    )


def print_simulation(candidate: "Candidate", simulated: "Simulation") -> None:
    """Print the bytes of a simulated step beside the prediction."""
    console = Console(width=120, highlight=False)
    console.print(
        f"\nSimulated: {candidate.layout}, recompute {candidate.layout.recompute}, "
        f"{candidate.work.micro_batch} sequences; it constructs and steps ({simulated.seconds:.0f} s)."
        + (f" Of stage {simulated.stage}, the fullest:" if candidate.layout.pipeline > 1 else "")
    )
    word, unit = _unit(simulated.total)
    table = _table("category", word)
    table.columns[1].justify = "right"
    for field in dataclasses.fields(simulated):
        if field.name not in ("seconds", "stage"):
            table.add_row(field.name.replace("total", "in all"), f"{getattr(simulated, field.name) / unit:.2f}")
    table.add_row("predicted in all", f"{candidate.memory.peak.total / unit:.2f}")
    console.print(table)


def print_published(as_json: bool) -> None:
    """Print the published figures beside predictions."""
    from ling.scaling.hardware import HARDWARE
    from ling.scaling.published import LOG_ALLOCATED, LOG_MAX_ALLOCATED, PUBLISHED_GPU, reproduce_log, reproduce_table

    rows, log = reproduce_table(), reproduce_log()
    if as_json:
        tree = [
            {
                "model": row.model, "mtp_layers": row.mtp_layers, "gpus": row.gpus, "published": row.published,
                "predicted": row.predicted.tokens_per_second, "ratio": row.ratio, "fitted": row.fitted,
            }
            for row in rows
        ]  # fmt: skip
        memory = {"resting_ratio": log.resting_ratio, "peak_ratio": log.peak_ratio}
        print(json.dumps({"throughput": tree, "log": memory}, indent=2))
        return
    console = Console(width=120, highlight=False)
    console.print(
        f"Published tokens per second, and predictions for {HARDWARE[PUBLISHED_GPU].name}, the GPU assumed there."
    )
    table = _table("model", "MTP", "GPUs", "published", "predicted", "predicted / published", "bound by")
    for column in table.columns[2:6]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row.model,
            str(row.mtp_layers),
            str(row.gpus),
            f"{row.published:,.0f}",
            f"{row.predicted.tokens_per_second:,.0f}",
            f"{row.ratio:.2f}" + (" (fitted)" if row.fitted else ""),
            row.predicted.binding.replace("_", " "),
        )
    console.print(table)
    console.print(
        "\nOne constant is fitted, to the row marked so. The others are predictions of what the layout could do."
    )
    console.print("\nMemory that the published 8K log prints (8 GPUs, MTP, everything recomputed), GB:")
    table = _table("moment", "logged", "predicted", "predicted / logged")
    for column in table.columns[1:]:
        column.justify = "right"
    resting, peak = log.memory.resting.total, log.memory.peak.total
    table.add_row("between steps", f"{LOG_ALLOCATED / 1e9:.1f}", f"{resting / 1e9:.1f}", f"{log.resting_ratio:.3f}")
    table.add_row("fullest", f"{LOG_MAX_ALLOCATED / 1e9:.1f}", f"{peak / 1e9:.1f}", f"{log.peak_ratio:.3f}")
    console.print(table)
    named = [(f.name, getattr(log.memory.peak, f.name) / 1e9) for f in dataclasses.fields(log.memory.peak)]
    parts = ", ".join(f"{_CATEGORIES.get(k, k)} {v:.1f}" for k, v in sorted(named, key=lambda p: -p[1]) if v >= 0.05)
    console.print(f"  at its fullest, {log.memory.moment}: {parts}")


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, header_style="bold", pad_edge=False)
