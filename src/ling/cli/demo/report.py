"""`report.json` and `report.html`: every number of a run, from the run itself. The page needs nothing beside it."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ling.cli.demo.directory import RunDirectory

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_HEAT_COLUMNS = 80


def write_report(run: RunDirectory, report: dict[str, Any], history: list[dict[str, Any]]) -> None:
    """Write both files; a model without experts gets no pictures of them."""
    sparse = bool(history[0]["counts"])
    figures = {
        "losses": _loss_curves(history),
        "loads": _load_maps(history) if sparse else None,
        "balance": _balance_curves(history) if sparse else None,
    }
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    run.page.write_text(template.render(report=report, figures=figures), encoding="utf-8")
    run.report.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _loss_curves(history: list[dict[str, Any]]) -> str:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    steps = [h["step"] for h in history]
    _smooth_line(axes, steps, [h["loss"] for h in history], "next token")
    for depth in range(len(history[0]["mtp_losses"])):
        _smooth_line(axes, steps, [h["mtp_losses"][depth] for h in history], f"MTP, {depth + 2} ahead")
    axes.set(xlabel="step", ylabel="nats per learnt token", ylim=(0, None))
    axes.legend(frameon=False)
    return _png(figure)


def _balance_curves(history: list[dict[str, Any]]) -> str:
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    steps = [h["step"] for h in history]
    _smooth_line(axes, steps, [1 + h["balance"]["max_violation"] for h in history], "busiest expert / mean")
    _smooth_line(axes, steps, [h["balance"]["dead_experts"] for h in history], "idle experts")
    axes.set(xlabel="step", ylabel="worst layer", ylim=(0, None))
    axes.legend(frameon=False)
    return _png(figure)


def _load_maps(history: list[dict[str, Any]]) -> str:
    """Draw, per sparse layer, the load of each expert over its mean as training goes on."""
    layers = sorted(history[0]["counts"], key=int)
    figure = Figure(figsize=(9, 2.0 * len(layers)), layout="constrained")
    rows = figure.subplots(len(layers), squeeze=False)[:, 0]
    images = []
    for axes, layer in zip(rows, layers, strict=True):
        loads = np.array([h["counts"][layer] for h in history], dtype=float)  # (steps, E)
        columns = np.stack([part.sum(0) for part in np.array_split(loads, min(_HEAT_COLUMNS, len(loads)))], axis=1)
        relative = columns / columns.mean(0, keepdims=True)
        extent = (0.0, float(history[-1]["step"]), float(loads.shape[1]), 0.0)
        images.append(
            axes.imshow(relative, aspect="auto", vmin=0, vmax=3, extent=extent, cmap="viridis", interpolation="nearest")
        )
        axes.set(ylabel=f"layer {layer}\nexpert")
    rows[-1].set(xlabel="step")
    figure.colorbar(images[-1], ax=list(rows), label="load / mean", shrink=0.6)
    return _png(figure)


def _smooth_line(axes: Axes, steps: list[int], values: list[float], label: str) -> None:
    width = max(1, len(values) // 100)
    kernel = np.ones(width) / width
    axes.plot(steps[width - 1 :], np.convolve(values, kernel, "valid"), label=label, linewidth=1.2)


def _png(figure: Figure) -> str:
    """Return a figure as the text of a data URL."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
