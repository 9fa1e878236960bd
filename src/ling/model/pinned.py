"""Modules whose tensors keep their dtype while the rest of the model is cast."""

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn


class PinnedDtype(nn.Module):
    """While `pinned`, `.to`, `.half`, `.bfloat16` and the like move this module's tensors and never cast them."""

    pinned = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if not self.pinned:
            return super()._apply(fn, recurse)

        def keep_dtype(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if moved.dtype == t.dtype else t.to(moved.device)

        return super()._apply(keep_dtype, recurse)
