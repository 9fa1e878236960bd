"""Checkpoints that are written while training goes on.

What is written is a copy in host memory of the moment `save` was called, so the state may change at once. One at a
time: the next waits for the one before, and gets to know what stopped it.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist
from torch import Tensor

from ling.checkpoint.dcp import save_dcp


class BackgroundSaver:
    """Writes training checkpoints in a thread of its own; leaving its block waits for the last one.

    together  all ranks make theirs, and call it, at the same time: their threads talk over a group of their own, so
              that they never meet what training exchanges meanwhile
    """

    def __init__(self, *, together: bool) -> None:
        self._together = together
        self._group = dist.new_group(backend="gloo") if together else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(
        self,
        directory: Path,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        *,
        finish: Callable[[Path], None] | None = None,
        then: Callable[[], None],
    ) -> None:
        """Begin to write a checkpoint over what is there, as `save_dcp` does; `then` is called when it is there.

        Raises what stopped the one before.
        """
        self.wait()
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

        def write() -> None:
            save_dcp(
                directory, copies, facts, overwrite=True, finish=finish, together=self._together, group=self._group
            )
            then()

        self._writing = self._thread.submit(write)

    def wait(self) -> None:
        """Return when nothing is being written; raises what stopped it."""
        if (writing := self._writing) is not None:
            self._writing = None
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.wait()
        except Exception:
            if error is None:  # else what came first is told
                raise
