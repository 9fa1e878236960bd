"""The whole sparse feed-forward in one call: router, choice, routed experts, shared expert.

Routed experts' outputs are added up in the order of the experts' numbers, the shared expert's last.
"""

import ctypes
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ling.ops.cpu import library as lib
from ling.ops.cpu import mlp
from ling.ops.router import RouterRule, Routing

if TYPE_CHECKING:
    from ling.ops.moe import MixExperts, MoeWeights

_NO_MATRIX = (0, 0, 0, 0, 0)


class CMoe(ctypes.Structure):
    """`Moe` of kernels.h."""

    _fields_ = [
        ("router", lib.CMatrix),
        ("bias", ctypes.c_void_p),
        ("gate_up", lib.CMatrix),
        ("down", lib.CMatrix),
        ("shared", mlp.CMlp),
        *((name, ctypes.c_int64) for name in ("E", "k", "n_group", "topk_group")),
        ("scaling", ctypes.c_double),
    ]


def why_not(x: Tensor, weights: "MoeWeights", rule: RouterRule, mix: "MixExperts | None" = None) -> str | None:
    if mix is not None:
        return "experts are elsewhere"
    return lib.why_not_rows(x) or why_not_weights(weights)


def why_not_weights(weights: "MoeWeights") -> str | None:
    """Why the weights of a sparse layer cannot be taken, or None."""
    reason = lib.why_not_weight(weights.gate_up_proj) or lib.why_not_weight(weights.down_proj)
    reason = reason or lib.why_not_values(weights.gate, may_be_bfloat16=True) or lib.why_not_values(weights.expert_bias)
    if reason is None and weights.shared is not None:
        reason = mlp.why_not_weights(*weights.shared)
    return reason


def rather_not(x: Tensor, weights: "MoeWeights", rule: RouterRule, mix: "MixExperts | None" = None) -> str | None:
    return lib.many_floats(x, weights.gate_up_proj)


def forward(
    x: Tensor, weights: "MoeWeights", rule: RouterRule, mix: "MixExperts | None" = None
) -> tuple[Tensor, Routing]:
    x = x.contiguous()
    if not x.shape[0]:
        return torch.empty_like(x), _nowhere(weights.gate.shape[0], rule.num_experts_per_tok)
    N, E, k = x.shape[0], weights.gate.shape[0], rule.num_experts_per_tok
    y = torch.empty_like(x)
    routing = Routing(
        torch.empty(N, E),
        torch.empty(N, k, dtype=torch.int64),
        torch.empty(N, k),
        torch.empty(E, dtype=torch.int64),
    )
    described = describe(weights, x.shape[1], rule)
    pointers = [part.data_ptr() for part in routing]
    lib.check(lib.opened().moe(x.data_ptr(), y.data_ptr(), N, torch.get_num_threads(), described, *pointers))
    return y, routing


def _nowhere(E: int, k: int) -> Routing:
    return Routing(
        torch.empty(0, E), torch.empty(0, k, dtype=torch.int64), torch.empty(0, k), torch.zeros(E, dtype=torch.int64)
    )


def describe(weights: "MoeWeights", H: int, rule: RouterRule) -> "ctypes._Pointer[CMoe]":
    return _describe(*_fields(weights, H), rule)


def _fields(w: "MoeWeights", H: int) -> tuple[Any, ...]:
    E, F = w.gate.shape[0], w.down_proj.shape[2]
    assert w.gate.shape == (E, H), (w.gate.shape, E, H)
    assert w.expert_bias is None or w.expert_bias.numel() == E, (w.expert_bias.shape, E)
    assert w.gate_up_proj.shape == (E, 2 * F, H), (w.gate_up_proj.shape, E, F, H)
    assert w.down_proj.shape == (E, H, F), (w.down_proj.shape, E, F, H)
    shared = None if w.shared is None else mlp.fields(*w.shared)  # type: ignore[arg-type]
    routed = (lib.fields(w.gate_up_proj, F), lib.fields(w.down_proj, H))
    return lib.fields(w.gate, E), lib.address(w.expert_bias), *routed, shared


@lru_cache(maxsize=4096)
def _describe(
    router: lib.Fields,
    bias: int,
    gate_up: lib.Fields,
    down: lib.Fields,
    shared: tuple[lib.Fields, ...] | None,
    rule: RouterRule,
) -> "ctypes._Pointer[CMoe]":
    matrices = [lib.CMatrix(*m) for m in (router, gate_up, down)]
    feed_forward = mlp.CMlp(*(lib.CMatrix(*m) for m in shared or (_NO_MATRIX,) * 3))
    choice = (router[3], rule.num_experts_per_tok, rule.n_group, rule.topk_group, rule.routed_scaling_factor)
    return ctypes.pointer(CMoe(matrices[0], bias, matrices[1], matrices[2], feed_forward, *choice))
