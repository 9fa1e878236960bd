"""Weights that accelerate keeps elsewhere: a `device_map` with parts on the disk, or on the CPU beside a GPU.

accelerate brings the weights of a module when that module is called. A block does not call the modules in it but hands
their weights to ops, so all of them are brought before it runs, and leave after it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def weights_at_hand(block: nn.Module) -> Iterator[None]:
    """Hold the weights of `block` where accelerate runs it; without accelerate's hooks nothing happens."""
    hooked: list[tuple[nn.Module, Any]] = [
        (module, module._hf_hook) for module in block.modules() if hasattr(module, "_hf_hook")
    ]
    for module, hook in hooked:
        hook.pre_forward(module)
    try:
        yield
    finally:
        for module, hook in hooked:
            hook.post_forward(module, None)


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state; what lies elsewhere is read into main memory."""
    state: dict[str, Tensor] = model.state_dict()
    elsewhere = {name for name, tensor in state.items() if tensor.is_meta}
    for prefix, module in model.named_modules():
        hook: Any = getattr(module, "_hf_hook", None)
        if hook is None or not elsewhere & _own(prefix, module).keys():
            continue
        hook.pre_forward(module)
        state |= {name: tensor.detach().cpu() for name, tensor in _own(prefix, module).items() if name in elsewhere}
        hook.post_forward(module, None)
    return state


def _own(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(module.named_parameters(prefix, recurse=False)),
        **dict(module.named_buffers(prefix, recurse=False)),
    }
