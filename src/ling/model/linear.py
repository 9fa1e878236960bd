"""A module that holds one weight under its published name and hands it to `ops.linear`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ling.model.packed import PackedPlace
from ling.model.pinned import PinnedDtype
from ling.ops.fp8 import Fp8BlockWeight, num_blocks
from ling.ops.linear import Projection, Weight, linear
from ling.ops.packed import PackedFormat


class Linear(PinnedDtype, nn.Linear):
    """`weight` (M, K) and perhaps `bias` (M,), uninitialised.

    After `keep_fp8` the weight is held as codes, `weight` float8_e4m3fn, and `weight_scale_inv`: the published
    names of a block-quantised checkpoint. After `keep_packed` it is held in 8 or 4 bits, as `PackedPlace` says.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.multiply: Callable[[Tensor, Tensor], Tensor] | None = None
        """Multiplies rows by the weight in place of `ops.linear`; None: that itself."""
        self.weight_scale_inv: Tensor | None
        self.register_buffer("weight_scale_inv", None)
        self.packed: PackedPlace | None = None

    def reset_parameters(self) -> None:
        """Leave the values to `init_weights` or a checkpoint."""

    def forward(self, x: Tensor) -> Tensor:
        if self.multiply is None:
            return linear(x, self.quantity(), self.bias)
        y = self.multiply(x, self.weight)
        return y if self.bias is None else y + self.bias

    def quantity(self) -> Weight:
        """Return the weight as ops take it."""
        if self.packed is not None:
            return self.packed.weight(self)
        weight, scale = self._parameters["weight"], self._buffers["weight_scale_inv"]  # past nn.Module's slow look-up
        assert weight is not None
        return weight if scale is None else Fp8BlockWeight(weight, scale, (weight.shape[0],))

    def keep_fp8(self) -> None:
        """Make room for codes and scales in place of the values; their content is undefined until loaded."""
        self.pinned = True
        M, K = self.weight.shape
        device = self.weight.device
        codes = torch.empty(M, K, dtype=torch.float8_e4m3fn, device=device)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.weight_scale_inv = torch.empty(num_blocks(M), num_blocks(K), device=device)

    def keep_packed(self, format: PackedFormat) -> None:
        """Make room for packed codes and scales in place of the values; their content is undefined until loaded."""
        self.pinned = True
        self.packed = PackedPlace(self, "weight", format, (self.out_features,))


def quantity_of(module: nn.Module) -> Weight | Projection:
    """Return the weight of a `Linear` as ops take it; a module that multiplies in another way is called instead."""
    if isinstance(module, Linear) and module.multiply is None:
        return module.quantity()
    return Projection(module)
