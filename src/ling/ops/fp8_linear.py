"""A linear map whose three products take FP8 operands.

Kept for backward is one thing: the row-wise codes of the input, half of what bfloat16 rows take. The weight's FP8 copy
is made for a product and forgotten after it; backward makes it again, bit for bit the same, and transposes it, which is
exact. So no second layout of anything lives beside the first, and nothing is quantised twice.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ling.config.fp8 import row_multiple
from ling.ops.backend import forced_backend, on_backend
from ling.ops.fp8 import E4M3
from ling.ops.fp8_matmul import columns_of, fp8_columns, fp8_grouped_matmul, fp8_matmul, fp8_weight_grad
from ling.ops.fp8_tensor import Fp8Tensor, RowsOf
from ling.ops.torch.autograd import run

Watch = Callable[[str, Tensor | RowsOf, Fp8Tensor], None]
"""Is shown a tensor, or what makes its rows, and its codes: (name of the operand, (..., M, K), codes)."""


class Fp8Rule(NamedTuple):
    """How operands are quantised, and by what the products are made."""

    gradient_kind: torch.dtype = E4M3
    """Codes of output gradients; everything else is E4M3."""
    power_of_two: bool = True
    """Whether scales are powers of two."""
    fp8_weight_grad: bool = False
    """Whether weight gradients have FP8 operands, too, in tiles of 128 rows; else bfloat16."""
    backend: str = "auto"
    """Back end of y and dx, where an op has one of that name; weight gradients keep the usual choice."""

    @property
    def row_multiple(self) -> int:
        """Each expert's rows begin at a multiple of this."""
        backend = "deep_gemm" if forced_backend() == "deep_gemm" else self.backend
        return row_multiple(fp8_weight_gradients=self.fp8_weight_grad, backend=backend)

    def multiply(self, rows: Fp8Tensor, weight: Fp8Tensor, dtype: torch.dtype) -> Tensor:
        """Return `fp8_matmul` of the back end."""
        return on_backend(self._backend(rows), fp8_matmul)(rows, weight, dtype)

    def multiply_groups(self, rows: Fp8Tensor, weights: Fp8Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
        """Return `fp8_grouped_matmul` of the back end; groups begin at multiples of `row_multiple`."""
        return on_backend(self._backend(rows), fp8_grouped_matmul)(rows, weights, offsets, dtype)

    def _backend(self, rows: Fp8Tensor) -> str:
        """Return the one that was asked for, unless no rows came to a rank's experts, which some have nothing for."""
        return self.backend if len(rows.codes) else "auto"

    def rows(self, x: Tensor, watch: Watch | None, name: str, kind: torch.dtype = E4M3) -> Fp8Tensor:
        """Quantise rows, and show them to `watch`."""
        quantised = Fp8Tensor.of_tiles(x, kind, power_of_two=self.power_of_two)
        if watch is not None:
            watch(name, x, quantised)
        return quantised

    def weight(self, w: Tensor, watch: Watch | None = None, name: str = "weight") -> Fp8Tensor:
        """Quantise a weight or a stack of them, and show it to `watch`."""
        quantised = Fp8Tensor.of_blocks(w, power_of_two=self.power_of_two)
        if watch is not None:
            watch(name, w, quantised)
        return quantised

    def columns(self, operand: Tensor | Fp8Tensor, kind: torch.dtype = E4M3) -> Fp8Tensor:
        """Quantise columns in tiles of 128 rows: (N, K) -> (K, N)."""
        return columns_of(operand, kind, power_of_two=self.power_of_two)


def fp8_linear(x: Tensor, weight: Tensor, rule: Fp8Rule, watch: Watch | None = None) -> Tensor:
    """Multiply rows by a weight, in FP8 forward and backward.

    x       (..., K) float32 or bfloat16; weight (M, K) of either
    watch   sees input, weight and output gradient as they are quantised
    return  (..., M) dtype of x
    """
    y: Tensor = run(_Fp8Linear, x.reshape(-1, x.shape[-1]), weight, rule, watch)
    return y.view(*x.shape[:-1], -1)


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rule: Fp8Rule, watch: Watch | None) -> Tensor:
        rows = rule.rows(x, watch, "input")
        ctx.save_for_backward(rows.codes, rows.scale, weight)
        ctx.rule, ctx.watch, ctx.dtype = rule, watch, x.dtype
        return rule.multiply(rows, rule.weight(weight, watch), x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        codes, scale, weight = ctx.saved_tensors
        rule: Fp8Rule = ctx.rule
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            gradients = rule.rows(dy, ctx.watch, "gradient", rule.gradient_kind)
            dx = rule.multiply(gradients, rule.weight(weight).transpose(), ctx.dtype)
        if ctx.needs_input_grad[1]:
            rows = Fp8Tensor(codes, scale, "tile")
            if rule.fp8_weight_grad:
                dweight = fp8_columns(rule.columns(dy, rule.gradient_kind), rule.columns(rows), weight.dtype)
            else:
                dweight = fp8_weight_grad(dy, rows, weight.dtype)
        return dx, dweight, None, None
