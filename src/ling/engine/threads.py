"""How many threads compute: one for each core that this process may really use.

Threads work in step, so one that waits for a core makes all of them wait: siblings of one core share its memory ports,
and a container's share of time, which `os.cpu_count` does not know, is used up by threads that only wait.
"""

import math
import os
from pathlib import Path

import torch

from ling.errors import ConfigError

_CPUS = Path("/sys/devices/system/cpu")
_CGROUPS = Path("/sys/fs/cgroup")
_NODES = Path("/sys/devices/system/node")
_VARIABLE = "OMP_NUM_THREADS"


def set_threads(asked: int | None) -> str:
    """Have torch and the CPU kernels use so many threads, or as many as there are cores; return a line that says so.

    OMP_NUM_THREADS, which OpenMP has read already, stands where nothing is asked for.
    Raises ConfigError if `asked` is no number of threads.
    """
    if asked is not None and asked < 1:
        raise ConfigError(f"--threads must be at least 1, got {asked}")
    if asked is not None:
        count, why = asked, "as asked"
    elif os.environ.get(_VARIABLE):
        count, why = torch.get_num_threads(), _VARIABLE
    else:
        count, why = usable_cores()
    torch.set_num_threads(count)
    nodes = num_memory_nodes()
    apart = f"; {nodes} memory nodes, start under numactl --interleave=all to use them alike" if nodes > 1 else ""
    return f"threads: {count} ({why}){apart}"


def usable_cores(
    cpus: Path = _CPUS, cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")
) -> tuple[int, str]:
    """Return how many cores this process may use, siblings counted once, and what decides it."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = len({_siblings(cpus, cpu) for cpu in allowed})
    quota = _quota(cgroups, own)
    if quota is not None and quota < cores:
        return max(1, math.floor(quota)), f"the container's share of {cores} cores"
    return cores, "one for each core"


def num_memory_nodes(nodes: Path = _NODES) -> int:
    """Return how many memory nodes there are; 1 where nobody says."""
    return max(1, len(list(nodes.glob("node[0-9]*"))))


def _siblings(cpus: Path, cpu: int) -> str:
    """Return what all hardware threads of a core have in common."""
    try:
        return (cpus / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota(cgroups: Path, own: Path) -> float | None:
    """Return the cores' worth of time that control groups leave to this process; None: no limit."""
    try:
        line = next(line for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    group = cgroups / line.removeprefix("0::").lstrip("/")
    quotas = []
    while cgroups in (group, *group.parents):
        try:
            most, period = (group / "cpu.max").read_text().split()
        except (OSError, ValueError):
            most, period = "max", "1"
        if most != "max":
            quotas.append(int(most) / int(period))
        group = group.parent
    return min(quotas, default=None)
