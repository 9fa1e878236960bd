"""What FP8 operands cost each product of a layer, at Ling-mini's sizes: relative errors of y, dx and dw.

    python -m benchmarks.fp8_gemm_error [--tokens N]

Errors are norms over the norm of the float64 product of what was not rounded. Inputs are normal with a few channels
eight times as large, as norms let through; weights normal as initialised; gradients of tokens differ by a factor of
e^1.5 from one another. On a GPU, or with the reference, numbers are the same up to the order of sums.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.results import describe_machine, save
from ling.config import ModelConfig, preset
from ling.ops.fp8 import E5M2
from ling.ops.fp8_linear import Fp8Rule, fp8_linear
from ling.ops.fp8_tensor import bfloat16_values

RULES = {
    "e4m3, power-of-two scales": Fp8Rule(),
    "e4m3, float32 scales": Fp8Rule(power_of_two=False),
    "e5m2 gradients": Fp8Rule(gradient_kind=E5M2),
    "FP8 weight gradients": Fp8Rule(fp8_weight_grad=True),
}
Products = tuple[Tensor, Tensor, Tensor]


def shapes(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return (rows, columns) of the weights of a layer, one expert's among them."""
    H, F, shared = model.hidden_size, model.moe_intermediate_size, model.shared_expert_dim
    return {
        "query_key_value": (model.qkv_dim, H),
        "attention.dense": (H, model.num_attention_heads * model.head_dim),
        "dense gate, up": (model.intermediate_size, H),
        "dense down": (H, model.intermediate_size),
        "expert gate_up": (2 * F, H),
        "expert down": (H, F),
        "shared gate, up": (shared, H),
        "shared down": (H, shared),
    }


def operands(tokens: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return input (N, K), weight (M, K) and output gradient (N, M)."""
    generator = torch.Generator().manual_seed(rows * 7919 + columns)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    channels = torch.ones(columns)
    channels[torch.randperm(columns, generator=generator)[: max(1, columns // 256)]] = 8.0
    x = normal(tokens, columns) * channels
    dy = normal(tokens, rows) * (1.5 * normal(tokens, 1)).exp() * 1e-6
    return x, normal(rows, columns) * 0.006, dy


def products(x: Tensor, w: Tensor, dy: Tensor) -> Products:
    return x @ w.T, dy @ w, dy.T @ x


def in_bfloat16(x: Tensor, w: Tensor, dy: Tensor) -> Products:
    return products(*(bfloat16_values(t) for t in (x, w, dy)))


def in_fp8(rule: Fp8Rule) -> Callable[[Tensor, Tensor, Tensor], Products]:
    def run(x: Tensor, w: Tensor, dy: Tensor) -> Products:
        x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = fp8_linear(x, w, rule)
        dx, dw = torch.autograd.grad(y, (x, w), dy)
        return y.detach(), dx, dw

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=512)
    tokens = parser.parse_args().tokens
    arms = {"bfloat16": in_bfloat16} | {name: in_fp8(rule) for name, rule in RULES.items()}
    table: dict[str, dict[str, list[float]]] = {}
    print(f"{'':18}{'':28}{'y':>8}{'dx':>8}{'dw':>8}   per cent of the product's norm, {tokens} tokens")
    for name, (rows, columns) in shapes(ModelConfig(**preset("ling_mini")["model"])).items():
        inputs = operands(tokens, rows, columns)
        exact = products(*(t.double() for t in inputs))
        for arm, run in arms.items():
            errors = [float((got - e).norm() / e.norm()) * 100 for got, e in zip(run(*inputs), exact, strict=True)]
            table.setdefault(f"{name} {rows}x{columns}", {})[arm] = [round(e, 4) for e in errors]
            print(f"{name:18}{arm:28}" + "".join(f"{e:8.3f}" for e in errors))
    print(describe_machine())
    print(save("fp8-gemm-error", {"tokens": tokens, "percent_y_dx_dw": table}).name)


if __name__ == "__main__":
    main()
