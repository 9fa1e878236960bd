"""torch's profiler over a few steps of a run, as a trace that a browser opens."""

from pathlib import Path
from typing import Any

import torch

from ling.config.run import RunConfig

DIRECTORY = "profile"


class Profile:
    """Records `run.profile_steps` steps from `run.profile_from` on."""

    def __init__(self, run: RunConfig, directory: Path, rank: int = 0) -> None:
        self._first, self._last = run.profile_from, run.profile_from + run.profile_steps - 1
        of_rank = f"_rank_{rank}" if rank else ""
        self._target = directory / DIRECTORY / f"steps_{self._first}_to_{self._last}{of_rank}.json.gz"
        self._profiler: Any = None

    def between(self, done: int) -> Path | None:
        """Begin or end where `done` steps have been made; return the trace that was written, if one was."""
        if self._first and done == self._first - 1:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=kinds, record_shapes=True)
            self._profiler.start()
        elif self._profiler is not None and done == self._last:
            return self.end()
        return None

    def end(self) -> Path | None:
        """Write what was recorded so far, if anything was."""
        if self._profiler is None:
            return None
        self._profiler.stop()
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._profiler.export_chrome_trace(str(self._target))
        self._profiler = None
        return self._target
