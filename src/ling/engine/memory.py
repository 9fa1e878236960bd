"""Memory that is free for a cache: of this machine, or of a GPU."""

import os
from pathlib import Path

import torch

from ling.errors import ConfigError

_MEMORY, _PROCESS = Path("/proc/meminfo"), Path("/proc/self/status")


def free_on(device: torch.device) -> int:
    """Return the bytes that `device` can still give."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_memory()


def cache_gib_within(share: float, device: torch.device) -> float:
    """Return the GiB that a share of a GPU's memory leaves for the cache, the weights being there already.

    Raises ConfigError for what is no share, or where nothing is left.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"gpu_memory_utilization must lie in (0, 1], got {share:g}")
    free, total = torch.cuda.mem_get_info(device)
    left = free - (1 - share) * total
    if left <= 0:
        raise ConfigError(
            f"gpu_memory_utilization {share:g} leaves no memory for the cache: of {total / 2**30:.1f} GiB "
            f"{(total - free) / 2**30:.1f} are in use"
        )
    return left / 2**30


def free_memory() -> int:
    """Return the bytes that this machine can still give, if the files that this process has mapped stay in memory.

    The system counts their pages as available; but weights among them are read for every token.
    """
    available = _kib(_MEMORY, "MemAvailable")
    if available is None:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    mapped, locked = (_kib(_PROCESS, name) or 0 for name in ("RssFile", "VmLck"))  # no locked page is called available
    return max(0, available - max(0, mapped - locked)) * 1024


def _kib(file: Path, name: str) -> int | None:
    """Return what a line of a file like /proc/meminfo says, in KiB; None where it says nothing."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
    except (OSError, ValueError, IndexError):
        return None
