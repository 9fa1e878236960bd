"""`ling plot`: the curves of one or several runs, as a picture or as a page that needs nothing beside it."""

import base64
import html
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ling.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMATS = (".png", ".svg", ".pdf", ".html")
Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """The lines of a run's `metrics.jsonl` and `evaluations.jsonl`."""

    name: str
    steps: list[Line]
    evaluations: list[Line]


@dataclass(frozen=True, slots=True)
class _Curve:
    title: str
    unit: str
    value: Callable[[Line], float | None]
    evaluated: bool = False
    logarithmic: bool = False


def _balance(key: str) -> Callable[[Line], float | None]:
    return lambda line: (line.get("balance") or {}).get(key)


_CURVES = (
    _Curve("loss", "nats per learnt token", lambda line: line["loss"]),
    _Curve("MTP loss, two ahead", "nats", lambda line: next(iter(line["mtp_losses"]), None)),
    _Curve("MTP's best token is right", "%", lambda line: next(iter(line["mtp_correct_percent"]), None)),
    _Curve("gradient norm", "before clipping", lambda line: line["grad_norm"], logarithmic=True),
    _Curve("learning rate", "", lambda line: line["lr"]),
    _Curve("speed", "tokens per second", lambda line: line["tokens"] / line["step_seconds"]),
    _Curve("busiest expert over the mean, minus 1", "worst layer", _balance("max_violation")),
    _Curve("entropy of the load", "share of the largest, worst layer", _balance("load_entropy")),
    _Curve("idle experts", "worst layer", _balance("dead_experts")),
    _Curve("held-out text", "bits per byte", lambda line: line.get("evaluation/bits_per_byte"), evaluated=True),
    _Curve("held-out tasks", "% right", lambda line: line.get("evaluation/tasks_percent"), evaluated=True),
)


def plot(
    runs: Annotated[list[Path], typer.Argument(help="Directories of runs.")],
    out: Annotated[Path, typer.Option(help="PNG, SVG, PDF, or HTML page.")] = Path("curves.png"),
    smooth: Annotated[int, typer.Option(min=1, help="Steps that a point is the mean of.")] = 20,
) -> None:
    """Draw the curves of training runs beside each other."""
    if out.suffix not in _FORMATS:
        raise ConfigError(f"--out {out} must end in {', '.join(_FORMATS)}")
    read = [read_run(path) for path in runs]
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is no directory; make it, or choose another --out")
    figure = draw(read, smooth)
    if out.suffix == ".html":
        out.write_text(_page(read, figure), encoding="utf-8")
    else:
        figure.savefig(out, dpi=110)
    print(out)


def read_run(directory: Path) -> Run:
    """Read the numbers of a run; ConfigError if there are none."""
    from ling.train.files import METRICS_NAME, read_metrics

    steps = read_metrics(directory / METRICS_NAME)
    if not steps:
        raise ConfigError(f"{directory} holds no numbers of a run ({METRICS_NAME}); name the --out of a training")
    return Run(directory.resolve().name, steps, read_metrics(directory / "evaluations.jsonl"))


def draw(runs: list[Run], smooth: int) -> "Figure":
    """Draw every curve that some run has, each run in its colour."""
    from matplotlib.figure import Figure

    curves = [(curve, found) for curve in _CURVES if (found := _values(curve, runs))]
    rows = -(-len(curves) // 2)
    figure = Figure(figsize=(12, 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for place, (curve, found) in zip(axes, curves):
        for i, run in enumerate(runs):
            if run.name in found:
                _line(place, *found[run.name], 1 if curve.evaluated else smooth, run.name, f"C{i}")
        place.set(title=curve.title, ylabel=curve.unit, yscale="log" if curve.logarithmic else "linear")
        place.grid(alpha=0.25)
    for place in axes[len(curves) :]:
        place.set_visible(False)
    if len(runs) > 1:
        axes[0].legend(frameon=False)
    return figure


def _values(curve: _Curve, runs: list[Run]) -> dict[str, tuple[list[int], list[float]]]:
    found = {}
    for run in runs:
        lines = run.evaluations if curve.evaluated else run.steps
        points = [(line["step"], value) for line in lines if (value := curve.value(line)) is not None]
        if points:
            found[run.name] = ([step for step, _ in points], [value for _, value in points])
    return found


def _line(axes: "Axes", steps: list[int], values: list[float], smooth: int, label: str, colour: str) -> None:
    import numpy as np

    width = min(smooth, len(values))
    means = np.convolve(values, np.ones(width) / width, "valid")
    if width > 1:
        axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.6)
    axes.plot(
        steps[width - 1 :], means, color=colour, label=label, linewidth=1.3, marker="o" if len(steps) < 3 else None
    )


def _page(runs: list[Run], figure: "Figure") -> str:
    """Return a page with the picture and the last numbers of each run."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    picture = base64.b64encode(buffer.getvalue()).decode()
    head = "<tr><th>run<th>steps<th>tokens<th>loss<th>held-out bits per byte<th>tasks right</tr>"
    rows = "".join(_row(run) for run in runs)
    return (
        "<!doctype html><meta charset='utf-8'><title>ling: runs</title>"
        "<style>body{font:15px sans-serif;margin:2em auto;max-width:1100px;padding:0 1em}img{max-width:100%}"
        "td,th{padding:.2em 1em .2em 0;text-align:left}</style>"
        f"<table>{head}{rows}</table><img alt='curves' src='data:image/svg+xml;base64,{picture}'>\n"
    )


def _row(run: Run) -> str:
    last, evaluated = run.steps[-1], run.evaluations[-1] if run.evaluations else {}
    cells = [
        run.name, f"{last['step']:,}", f"{sum(line['tokens'] for line in run.steps):,}", f"{last['loss']:.3f}",
        _shown(evaluated.get("evaluation/bits_per_byte"), "{:.3f}"),
        _shown(evaluated.get("evaluation/tasks_percent"), "{:.1f} %"),
    ]  # fmt: skip
    return f"<tr>{''.join(f'<td>{html.escape(cell)}' for cell in cells)}</tr>"


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
