"""Doubles of two libraries' FP8 products: each refuses what its documentation does not allow, then multiplies.

The doubles share nothing with `ling.ops`: values are codes times the scale of their place, as the contract has it.
What a library leaves undefined is NaN here. Sources: pytorch/pytorch#166752 and #158037 and the checks of
`_scaled_mm_v2`; DeepGEMM's README and its checks of `fp8_gemm_nt` and `m_grouped_fp8_gemm_nt_contiguous` on Hopper.
"""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import ScalingType

from ling.ops import hopper
from ling.ops.deep_gemm import library
from ling.ops.fp8 import E4M3
from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.scaled_mm import fp8_matmul as by_scaled_mm

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
CALLS: list[str] = []
"""Names of the doubles that have multiplied since `install`."""


class ContractError(RuntimeError):
    """A library was called in a way that it does not take."""


def demand(condition: bool, what: str) -> None:
    if not condition:
        raise ContractError(what)


def scaled_mm(
    mat_a: Tensor, mat_b: Tensor, scale_a: Any, scale_recipe_a: Any, scale_b: Any, scale_recipe_b: Any,
    swizzle_a: Any = None, swizzle_b: Any = None, bias: Tensor | None = None,
    output_dtype: torch.dtype | None = torch.bfloat16, contraction_dim: tuple[int, ...] = (),
    use_fast_accum: bool = False,
) -> Tensor:  # fmt: skip
    """(N, K) by (K, M) with tiles and blocks, as cuBLASLt takes them on Hopper."""
    (N, K), M = mat_a.shape, mat_b.shape[1]
    L, L4 = -(-K // 128), -(-K // 512) * 4
    CALLS.append("scaled_mm")
    demand((scale_recipe_a, scale_recipe_b) == (ScalingType.BlockWise1x128, ScalingType.BlockWise128x128), "recipes")
    demand(swizzle_a is None and swizzle_b is None and bias is None and contraction_dim == (), "options")
    demand(mat_a.dtype in FP8 and mat_b.dtype in FP8, "codes are FP8")
    demand(torch.float8_e4m3fn in (mat_a.dtype, mat_b.dtype), "two of E5M2 are not multiplied")
    demand(mat_a.stride() == (K, 1), f"mat_a is row by row, not {mat_a.stride()}")
    demand(mat_b.shape[0] == K and mat_b.stride() == (1, K), f"mat_b is column by column, not {mat_b.stride()}")
    demand(K % 16 == 0 and M % 16 == 0, f"{K} x {M} are multiples of 16")
    demand(N % 4 == 0, f"{N} rows are a multiple of 4")
    demand(scale_a.dtype == scale_b.dtype == torch.float32, "scales are float32")
    demand(scale_a.shape == (N, L), f"scale_a is {N} x {L}, not {tuple(scale_a.shape)}")
    demand(scale_a.stride() == (1, N), f"scale_a has strides 1, {N}, not {scale_a.stride()}")
    demand(scale_b.shape == (L4, -(-M // 128)), f"scale_b is {L4} x {-(-M // 128)}, not {tuple(scale_b.shape)}")
    demand(scale_b.stride() == (1, L4), f"scale_b has strides 1, {L4}, not {scale_b.stride()}")
    demand(output_dtype == torch.bfloat16, f"results are bfloat16, not {output_dtype}")
    demand(not use_fast_accum, "fast sums are not in float32")
    k = torch.arange(K) // 128
    a = mat_a.float() * scale_a[:, k]
    b = mat_b.float() * scale_b[k][:, torch.arange(M) // 128]
    return (a @ b).to(torch.bfloat16)


def _values(operand: tuple[Tensor, Tensor], rows_per_scale: int) -> Tensor:
    codes, scale = operand
    mn, K = codes.shape[-2:]
    demand(codes.dtype == torch.float8_e4m3fn, f"codes are E4M3, not {codes.dtype}")
    demand(codes.is_contiguous(), "codes are K-major, experts one after another")
    demand(scale.dtype == torch.float32, "scales are float32 on Hopper")
    expected = (*codes.shape[:-2], -(-mn // rows_per_scale), -(-K // 128))
    demand(scale.shape == expected, f"scales are {expected}, not {tuple(scale.shape)}")
    demand(rows_per_scale == 1 or scale.is_contiguous(), "scales of blocks are contiguous")
    demand(K % 128 == 0, f"{K} is a multiple of 128")
    return codes.float() * scale[..., torch.arange(mn) // rows_per_scale, :][..., torch.arange(K) // 128]


def fp8_gemm_nt(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], d: Tensor, c: Tensor | None = None, recipe: Any = None
) -> None:
    """(N, K) by (M, K), written to d (N, M)."""
    CALLS.append("fp8_gemm_nt")
    demand(c is None and recipe is None, "options")
    demand(d.dtype == torch.bfloat16 and d.stride(-1) == 1, "d is bfloat16, row by row")
    demand(d.shape == (len(a[0]), len(b[0])), f"d is {len(a[0])} x {len(b[0])}, not {tuple(d.shape)}")
    demand(len(b[0]) % 64 == 0, f"{len(b[0])} outputs are a multiple of 64")
    d.copy_(_values(a, 1) @ _values(b, 128).T)


def m_grouped_fp8_gemm_nt_contiguous(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], d: Tensor, grouped_layout: Tensor, recipe: Any = None
) -> None:
    """(S, K) by one of (E, M, K) for each 128 rows, written to d (S, M)."""
    S, (E, M, _) = len(a[0]), b[0].shape
    CALLS.append("m_grouped_fp8_gemm_nt_contiguous")
    demand(recipe is None, "options")
    demand(d.dtype == torch.bfloat16 and d.is_contiguous() and d.shape == (S, M), "d is bfloat16 (S, M)")
    demand(grouped_layout.dtype == torch.int32 and grouped_layout.shape == (S,), "an int32 for every row")
    demand(S % 128 == 0, f"{S} rows are a multiple of 128")
    rows, weights = _values(a, 1), _values(b, 128)
    d.fill_(torch.nan)
    for begin in range(0, S, 128):
        experts = grouped_layout[begin : begin + 128]
        first = int(experts[0])
        demand(-1 <= first < E, f"expert {first}")
        demand(bool(((experts == first) | (experts == -1)).all()), f"rows {begin} to {begin + 128} have two experts")
        if first >= 0:
            d[begin : begin + 128] = rows[begin : begin + 128] @ weights[first].T


def deep_gemm(**changes: Any) -> Any:
    """Return a double of the module."""
    return SimpleNamespace(
        **{
            library.DENSE: fp8_gemm_nt,
            library.GROUPED: m_grouped_fp8_gemm_nt_contiguous,
            library.ALIGNMENT: lambda: 128,
            **changes,
        }
    )


def install(monkeypatch: pytest.MonkeyPatch, module: Any = None) -> None:
    """Put the doubles in the libraries' places, on a device that is taken for a Hopper GPU."""
    CALLS.clear()
    monkeypatch.setattr(hopper, "refuse_device", lambda device: None)
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    monkeypatch.setattr(by_scaled_mm, "scaled_mm", scaled_mm)
    double = ModuleType("deep_gemm")
    vars(double).update(vars(module or deep_gemm()))
    monkeypatch.setitem(sys.modules, "deep_gemm", double)
    library.find.cache_clear()


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def operands(N: int, M: int, K: int, kind: torch.dtype = E4M3, **rule: bool) -> tuple[Fp8Tensor, Fp8Tensor]:
    """Rows and a weight whose tiles and blocks differ in size, so that a scale in a wrong place shows."""
    rows = draw(0, N, K) * 4.0 ** draw(1, N, K // 128).repeat_interleave(128, 1)
    weight = draw(2, M, K) * 4.0 ** draw(3, M // 128, K // 128).repeat_interleave(128, 0).repeat_interleave(128, 1)
    return Fp8Tensor.of_tiles(rows, kind, **rule), Fp8Tensor.of_blocks(weight, **rule)
