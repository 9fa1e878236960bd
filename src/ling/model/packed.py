"""What a module that holds packed weights shares with the others: room for codes and scales under published names."""

import torch
from torch import Tensor, nn

from ling.ops.packed import PackedFormat, PackedWeight, codes_shape, scales_shape

SCALES_SUFFIX = "_scales"
"""The weight's own name holds the codes; this behind it, the scales."""


class PackedPlace:
    """Where a module holds one packed weight: parameter `name` and buffer `name_scales`."""

    def __init__(self, module: nn.Module, name: str, format: PackedFormat, rows: tuple[int, ...]) -> None:
        """Make room in place of the values of parameter `name`; its content is undefined until loaded."""
        values: Tensor = getattr(module, name)
        self.name, self.format, self.rows, self.columns = name, format, rows, values.shape[-1]
        shape = (tuple(values.shape[:-2]), rows, self.columns)
        codes = torch.empty(codes_shape(format, *shape), dtype=torch.uint8, device=values.device)
        scales = torch.empty(scales_shape(*shape), dtype=torch.float16, device=values.device)
        setattr(module, name, nn.Parameter(codes, requires_grad=False))
        module.register_buffer(name + SCALES_SUFFIX, scales)
        self._weight: PackedWeight | None = None

    def weight(self, module: nn.Module) -> PackedWeight:
        """Return the weight as ops take it; made anew where the module's tensors have been replaced."""
        codes, scales = module._parameters[self.name], module._buffers[self.name + SCALES_SUFFIX]
        if self._weight is None or self._weight.codes is not codes or self._weight.scales is not scales:
            assert codes is not None
            assert scales is not None
            self._weight = PackedWeight(self.format, codes, scales, self.rows, self.columns)
        return self._weight
