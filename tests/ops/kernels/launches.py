"""Calls that launch every kernel, at the sizes of Ling-mini, on whatever device is the default (meta, to compile).

Each returns nothing; names say which tests select them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ling.ops.attention import HeadShape
from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.paged_attention import BlockStore, HeldBlocks
from ling.ops.ragged import Ragged
from ling.ops.rope import Rope
from ling.ops.router import RouterRule
from ling.ops.triton import (
    adamw,
    attention_prologue,
    cross_entropy,
    fp8_grouped_matmul,
    fp8_matmul,
    gather,
    gradient_norm,
    moe_decode,
    norm,
    paged_attention,
    quantize_block,
    quantize_tile,
    router,
    rows,
    swiglu,
    weight_grad,
)

N, H, A, K, D = 4096, 2048, 16, 4, 128
E, k, F = 256, 8, 512
R = N * k
BF16, E4M3, E5M2 = torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2


def bf16(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=BF16)


def norm_forward_and_backward() -> None:
    y, inv_rms = norm.rms_norm(bf16(N, H), bf16(H), 1e-6)
    norm.rms_norm_backward(y, bf16(N, H), bf16(H), inv_rms)


def norm_and_codes() -> None:
    norm.rms_norm_e4m3(bf16(N, H), bf16(H), 1e-6)


def tiles(*shape: int, kind: torch.dtype = E4M3) -> Fp8Tensor:
    scale = torch.empty(*shape[:-1], -(-shape[-1] // 128))
    return Fp8Tensor(torch.empty(shape, dtype=kind), scale, "tile")


def blocks(*shape: int) -> Fp8Tensor:
    scale = torch.empty(*shape[:-2], *(-(-size // 128) for size in shape[-2:]))
    return Fp8Tensor(torch.empty(shape, dtype=E4M3), scale, "block")


def offsets() -> Tensor:
    return torch.empty(E, dtype=torch.int32)


def heads_and_their_gradients() -> None:
    inputs = [bf16(N, A + 2 * K, D), bf16(D), bf16(D)]
    out = attention_prologue.forward(
        *(x.requires_grad_() for x in inputs), HeadShape(A, K, D, 1e-6), Rope(bf16(N, 32), bf16(N, 32))
    )
    torch.autograd.grad(out, inputs, out)


def swiglu_and_its_gradients() -> None:
    swiglu.swiglu_backward(swiglu.swiglu(bf16(R, 2 * F)), bf16(R, 2 * F))


def weighted_swiglu_and_its_gradients() -> None:
    swiglu.swiglu(bf16(R, 2 * F), torch.empty(R))
    swiglu.swiglu_backward(bf16(R, F), bf16(R, 2 * F), torch.empty(R))


def swiglu_in_fp8() -> None:
    swiglu.swiglu_fp8(bf16(R, 2 * F), torch.empty(R))
    swiglu.swiglu_backward_fp8(bf16(R, F), bf16(R, 2 * F), torch.empty(R))


def tiles_of_rows() -> None:
    quantize_tile.forward(bf16(N, H))


def tiles_of_rows_in_other_formats() -> None:
    quantize_tile.forward(bf16(N, H), power_of_two=False)
    quantize_tile.forward(bf16(N, H), E5M2)
    quantize_tile.forward(torch.empty(R, F))


def blocks_of_experts() -> None:
    quantize_block.forward(bf16(E, 2 * F, H))
    quantize_block.transpose(quantize_block.quantize_both_ways(bf16(E, H, F))[0])


def blocks_in_float32() -> None:
    quantize_block.forward(torch.empty(H, H), power_of_two=False)


def fp8_product() -> None:
    fp8_matmul.forward(tiles(N, H), blocks(3072, H), BF16)


def fp8_products_of_experts() -> None:
    fp8_grouped_matmul.forward(tiles(R, H), blocks(E, 2 * F, H), offsets(), BF16)


def fp8_products_of_other_shapes() -> None:
    fp8_grouped_matmul.forward(tiles(R, F), blocks(E, H, F), offsets(), BF16)
    fp8_grouped_matmul.forward(tiles(R, H, kind=E5M2), blocks(E, F, H), offsets(), BF16)
    fp8_grouped_matmul.forward(tiles(256, H), blocks(E, 2 * F, H), offsets(), BF16)


def rows_of_experts_and_back() -> None:
    order = rows.order_pairs(torch.empty(N, k, dtype=torch.int64), torch.empty(E, dtype=torch.int64), 16)
    rows.gather(bf16(N, H), order, k)
    rows.gather_fp8(tiles(N, H), order, k)
    rows.combine(bf16(R, H), order, k, torch.empty(N, k), BF16)


def routing() -> None:
    router.forward(bf16(N, H), torch.empty(E, H), torch.empty(E), RouterRule(k, 8, 4, 2.5))


def routing_of_other_dtypes() -> None:
    router.forward(bf16(N, H), bf16(E, H), torch.empty(E), RouterRule(k, 8, 4, 2.5))
    router.forward(bf16(128, H), torch.empty(E, H), torch.empty(E), RouterRule(k, 8, 4, 2.5))
    router.forward(torch.empty(N, H), torch.empty(E, H), None, RouterRule(k, 1, 1, 2.5))


def sums_without_weights() -> None:
    order = rows.order_pairs(torch.empty(N, k, dtype=torch.int64), torch.empty(E, dtype=torch.int64), 1)
    rows.combine(bf16(R, H), order, k, None, BF16)


def losses() -> None:
    V = 157184
    cross_entropy.cross_entropy_(bf16(N, V), labels(N), torch.empty(N), torch.empty(N, dtype=torch.bool), gradient=True)


def losses_alone_and_in_float32() -> None:
    for dtype, gradient in ((BF16, False), (torch.float32, True)):
        logits, correct = torch.empty(N, 5000, dtype=dtype), torch.empty(N, dtype=torch.bool)
        cross_entropy.cross_entropy_(logits, labels(N), torch.empty(N), correct, gradient=gradient)


def labels(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int64)


def update(weights: torch.dtype, moments: torch.dtype) -> None:
    size = E * 2 * F * H
    scale = torch.empty(size // 256) if moments == E4M3 else None
    moment = adamw.Moment(torch.empty(size, dtype=moments), scale)
    weight = torch.empty(size, dtype=weights)
    step, key = torch.empty(()), 3 << 60
    adamw.forward(weight, bf16(size), moment, moment, step, key, adamw.AdamWRule(1e-4, 0.9, 0.95, 1e-8, 0.1, True))


def updates_in_few_bits() -> None:
    update(BF16, E4M3)


def updates_in_more_bits() -> None:
    update(BF16, BF16)
    update(torch.float32, torch.float32)


def gathering_in_few_bits() -> None:
    size = E * 2 * F * H
    moment = gather.Moment(torch.empty(size, dtype=E4M3), torch.empty(size // 256))
    gather.forward(bf16(size), moment, moment, 3 << 60, 0.11, 0.053)


def gathering_momentum() -> None:
    gather.forward(bf16(4096), gather.Moment(bf16(4096), None), None, 3 << 60, 1.05, 0.0)


def sums_of_squares() -> None:
    with torch.device("cpu"):
        gradient_norm.forward([torch.empty(5), bf16(5)])


def decode(dtype: torch.dtype, with_scales: bool) -> None:
    keys = torch.empty(1024, 64, K, D, dtype=dtype)
    scale = torch.empty(1024, 64, K) if with_scales else None
    tables, spans = torch.empty(8, 64, dtype=torch.int64), torch.empty(8, 3, dtype=torch.int64)
    held = HeldBlocks(tables, lambda: tables, spans=spans)
    paged_attention.forward(bf16(8, A, D), BlockStore(keys, keys, scale, scale), Ragged([1] * 8, "cpu"), held)


def decoding() -> None:
    decode(BF16, False)


def decoding_from_fp8() -> None:
    decode(E4M3, True)


def experts_of_few_tokens() -> None:
    chosen = torch.empty(2, k, dtype=torch.int64)
    moe_decode.mix_few(bf16(2, H), chosen, torch.empty(2, k), bf16(E, 2 * F, H), bf16(E, H, F))


def weight_gradients() -> None:
    weight_grad.of_rows(bf16(R, 2 * F), tiles(R, H), offsets(), BF16)


def weight_gradients_in_fp8() -> None:
    weight_grad.of_columns(tiles(2 * F, R), tiles(H, R), offsets(), BF16)


def weight_gradients_of_other_kinds() -> None:
    weight_grad.of_rows(bf16(N, H), tiles(N, H), None, torch.float32)
    weight_grad.of_columns(tiles(H, N, kind=E5M2), tiles(H, N), None, BF16)


USUAL = (
    norm_and_codes,
    norm_forward_and_backward,
    heads_and_their_gradients,
    swiglu_in_fp8,
    tiles_of_rows,
    blocks_of_experts,
    fp8_product,
    fp8_products_of_experts,
    routing,
    rows_of_experts_and_back,
    losses,
    updates_in_few_bits,
    gathering_in_few_bits,
    sums_of_squares,
    decoding,
    experts_of_few_tokens,
    weight_gradients,
    weight_gradients_in_fp8,
)
"""A launch of every kernel."""
OTHERS = (
    swiglu_and_its_gradients,
    weighted_swiglu_and_its_gradients,
    tiles_of_rows_in_other_formats,
    blocks_in_float32,
    fp8_products_of_other_shapes,
    routing_of_other_dtypes,
    sums_without_weights,
    losses_alone_and_in_float32,
    updates_in_more_bits,
    gathering_momentum,
    decoding_from_fp8,
    weight_gradients_of_other_kinds,
)
"""The same kernels for other dtypes and shapes."""
LAUNCHES: dict[str, Callable[[], None]] = {f.__name__: f for f in (*USUAL, *OTHERS)}
