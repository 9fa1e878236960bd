"""Kernels that are bound by memory at Ling-mini's sizes: what to run, and the bytes that must be moved for it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu_items
from benchmarks.gpu_items import MINI
from ling.ops.attention import HeadShape, split_norm_rope
from ling.ops.backend import use_backend
from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.rope import Rope
from ling.ops.router import RouterRule, count_experts, route
from ling.ops.triton import adamw, cross_entropy, gradient_norm, norm, quantize_block, quantize_tile, rows
from ling.ops.triton.swiglu import swiglu_backward_fp8, swiglu_fp8

N = 16384
H, V, E, k = MINI.hidden_size, MINI.vocab_size, MINI.num_experts, MINI.num_experts_per_tok
F = MINI.moe_intermediate_size
A, K, D = MINI.num_attention_heads, MINI.num_key_value_heads, MINI.head_dim
R = N * k
BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn
RULE = RouterRule(k, MINI.n_group, MINI.topk_group, MINI.routed_scaling_factor)

UPDATED = 2**28
"""Parameters of the optimizer's cases."""

Work = tuple[Callable[[], Any], float]
"""What is timed, and the bytes it must move."""


def random(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape, device=gpu_items.DEVICE).to(dtype)


def bytes_of(*tensors: Tensor | Fp8Tensor) -> float:
    return float(sum(x.nbytes if isinstance(x, Tensor) else x.codes.nbytes + x.scale.nbytes for x in tensors))


def norm_forward() -> Work:
    x, w = random(N, H), random(H)
    return lambda: norm.rms_norm(x, w, 1e-6), 2 * bytes_of(x)


def norm_and_codes() -> Work:
    x, w = random(N, H), random(H)
    return lambda: norm.rms_norm_e4m3(x, w, 1e-6), 2.5 * bytes_of(x)


def norm_backward() -> Work:
    x, w, dy = random(N, H), random(H), random(N, H)
    inv_rms = norm.rms_norm(x, w, 1e-6)[1]
    return lambda: norm.rms_norm_backward(dy, x, w, inv_rms), 3 * bytes_of(x)


def heads_forward() -> Work:
    qkv, q, key = random(N, A + 2 * K, D), random(D), random(D)
    rope = Rope(random(N, MINI.rotated_dim // 2), random(N, MINI.rotated_dim // 2))

    def run() -> Any:
        with torch.no_grad(), use_backend("triton"):
            return split_norm_rope(qkv, q, key, HeadShape(A, K, D, 1e-6), rope)

    return run, 2 * bytes_of(qkv, rope.cos)


def routing() -> Work:
    x, weight, bias = random(N, H), random(E, H, dtype=torch.float32) / H**0.5, torch.zeros(E, device=gpu_items.DEVICE)

    def run() -> Any:
        with torch.no_grad(), use_backend("triton"):
            return route(x, weight, bias, RULE)

    return run, bytes_of(x) + 8 * N * E


def ids() -> Tensor:
    return torch.rand(N, E, device=gpu_items.DEVICE).topk(k, dim=1).indices


def row_map() -> Work:
    chosen = ids()
    counts = count_experts(chosen, E)
    return lambda: rows.order_pairs(chosen, counts, 16), 3 * bytes_of(chosen)


def gather_of_codes() -> Work:
    chosen, x = ids(), Fp8Tensor.of_tiles(random(N, H))
    order = rows.order_pairs(chosen, count_experts(chosen, E), 16)
    return lambda: rows.gather_fp8(x, order, k), bytes_of(x) * (1 + k)


def sum_of_rows() -> Work:
    chosen = ids()
    order = rows.order_pairs(chosen, count_experts(chosen, E), 1)
    out = random(R, H)
    return lambda: rows.combine(out, order, k, None, BF16), bytes_of(out) * (1 + 1 / k)


def swiglu_to_codes() -> Work:
    gate_up, mix = random(R, 2 * F), random(R, dtype=torch.float32)
    return lambda: swiglu_fp8(gate_up, mix), bytes_of(gate_up) * 1.25


def swiglu_gradient() -> Work:
    gate_up, mix, d = random(R, 2 * F), random(R, dtype=torch.float32), random(R, F)
    return lambda: swiglu_backward_fp8(d, gate_up, mix), bytes_of(d) + 2.5 * bytes_of(gate_up)


def codes_of_rows() -> Work:
    x = random(N, H)
    return lambda: quantize_tile.forward(x), 1.5 * bytes_of(x)


def codes_of_weights() -> Work:
    w = random(E, 2 * F, H)
    return lambda: quantize_block.forward(w), 1.5 * bytes_of(w)


def codes_of_weights_both_ways() -> Work:
    w = random(E, 2 * F, H)
    return lambda: quantize_block.quantize_both_ways(w), 2 * bytes_of(w)


def transpose_of_weights() -> Work:
    blocks = quantize_block.Blocks(*quantize_block.forward(random(E, 2 * F, H)))
    return lambda: quantize_block.transpose(blocks), 2 * bytes_of(blocks.codes)


def loss_and_its_gradient() -> Work:
    n = N // 16
    logits, labels = random(n, V), torch.randint(V, (n,), device=gpu_items.DEVICE)
    per_token, correct = (
        torch.empty(n, device=gpu_items.DEVICE),
        torch.empty(n, dtype=torch.bool, device=gpu_items.DEVICE),
    )
    return lambda: cross_entropy.cross_entropy_(logits, labels, per_token, correct, gradient=True), 3 * bytes_of(logits)


def update_in_few_bits() -> Work:
    n = UPDATED
    moment = [
        adamw.Moment(torch.zeros(n, device=gpu_items.DEVICE, dtype=E4M3), torch.ones(n // 256, device=gpu_items.DEVICE))
        for _ in "mv"
    ]
    weight, gradient, step = random(n), random(n), torch.zeros((), device=gpu_items.DEVICE)
    rule = adamw.AdamWRule(1e-4, 0.9, 0.95, 1e-8, 0.1, True)
    return lambda: adamw.forward(weight, gradient, *moment, step, 12345, rule), 10 * n


def squares_of_gradients() -> Work:
    gradients = [random(UPDATED // 16) for _ in range(16)]
    return lambda: gradient_norm.forward(gradients), bytes_of(*gradients)


MEMORY_BOUND = [
    norm_forward, norm_and_codes, norm_backward, heads_forward, routing, row_map, gather_of_codes, sum_of_rows,
    swiglu_to_codes, swiglu_gradient, codes_of_rows, codes_of_weights, codes_of_weights_both_ways, transpose_of_weights,
    loss_and_its_gradient, update_in_few_bits, squares_of_gradients,
]  # fmt: skip
NOT_IN_GRAPHS = [squares_of_gradients]  # its table of addresses comes from the host
