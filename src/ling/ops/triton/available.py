"""Whether Triton's kernels can take a call at all; twins add what they need beyond that."""

import importlib.util

import torch
from torch import Tensor, nn

INSTALLED = importlib.util.find_spec("triton") is not None

interpreting = False
"""Whether kernels run in Triton's interpreter, on CPU tensors. Only `ling.testing.triton_interpreter` sets it."""

_PLAIN = (Tensor, nn.Parameter)
FLOATS = (torch.bfloat16, torch.float32)
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def refuse(*tensors: Tensor | None, dtypes: tuple[torch.dtype, ...] = FLOATS) -> str | None:
    """Return why kernels cannot read these tensors, None where they can. The first must be of one of `dtypes`."""
    first = tensors[0]
    assert first is not None
    if not INSTALLED:
        return "triton is not installed"
    for tensor in tensors:
        if tensor is not None and type(tensor) not in _PLAIN:
            return f"a {type(tensor).__name__} has no address of its own"
        if tensor is not None and tensor.device != first.device:
            return f"tensors are on {first.device} and {tensor.device}"
    if first.device.type != "cuda" and not interpreting:
        return f"its kernels run on CUDA devices, not on {first.device.type}"
    if first.device.type == "cuda" and torch.version.hip:
        return "its kernels are written for NVIDIA's formats"
    if first.dtype not in dtypes:
        return f"it does not take {first.dtype}"
    if first.numel() == 0:
        return "there is nothing to do"
    return None


def refuse_fp8(*tensors: Tensor | None, dtypes: tuple[torch.dtype, ...] = FLOATS) -> str | None:
    """`refuse`, for kernels that read or write E4M3: those need Ada or Hopper."""
    reason = refuse(*tensors, dtypes=dtypes)
    first = tensors[0]
    if (
        reason is None
        and first is not None
        and first.is_cuda
        and torch.cuda.get_device_capability(first.device) < (8, 9)
    ):
        return "this GPU has no E4M3"
    return reason


def next_power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()
