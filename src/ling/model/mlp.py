"""Feed-forward of dense layers and of the shared expert."""

from torch import Tensor, nn

from ling.model.linear import Linear, quantity_of
from ling.ops.linear import Projection, Weight
from ling.ops.mlp import swiglu_mlp


class MLP(nn.Module):
    """SwiGLU of width `dim`."""

    def __init__(self, hidden_size: int, dim: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, dim)
        self.up_proj = Linear(hidden_size, dim)
        self.down_proj = Linear(dim, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return swiglu_mlp(x, *self.quantities())

    def quantities(self) -> tuple[Weight | Projection, Weight | Projection, Weight | Projection]:
        """Return gate, up and down as ops take them."""
        return quantity_of(self.gate_proj), quantity_of(self.up_proj), quantity_of(self.down_proj)
