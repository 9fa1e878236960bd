"""One JSON file per measurement: what was run, where, and what came out."""

import json
import os
import platform
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from ling.version import __version__

HERE = Path(__file__).parent / "results"


def describe_machine() -> dict[str, Any]:
    """Return what a reader needs to judge a number by."""
    machine: dict[str, Any] = {
        "device": device_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "ling": __version__,
    }
    if torch.cuda.is_available():
        machine |= {"cuda": torch.version.cuda, "gpu_memory_gib": round(_gpu().total_memory / 2**30, 1)}
    return machine


def device_name() -> str:
    if torch.cuda.is_available():
        return _gpu().name
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    return names[0].strip() if names else platform.processor() or platform.machine()


def save(item: str, numbers: dict[str, Any], out: Path = HERE) -> Path:
    """Write `<date>-<device>-<item>.json` into `out`, at once."""
    out.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^A-Za-z0-9]+", "-", device_name()).strip("-").lower()
    path = out / f"{datetime.now():%Y-%m-%d}-{device}-{item}.json"
    record = {
        "item": item,
        "when": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command(),
        "machine": describe_machine(),
        "numbers": numbers,
    }
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def command() -> str:
    """Return what runs this again. Where somebody's directories lie is nobody else's business: they become DIR."""
    words = [re.sub(r"(?<![^=])[/~].*", "DIR", word) for word in sys.argv[1:]]
    return " ".join(["python", "-m", _module(), *words])


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None else Path(sys.argv[0]).stem


def _gpu() -> Any:
    return torch.cuda.get_device_properties(0)
