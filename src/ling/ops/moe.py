"""The sparse feed-forward: route, permute, grouped GEMM, combine. Dropless; no Python loop over experts.

tokens (N, H) --route--> k experts each --sort by expert--> rows (R, H), R = N * k
rows --gate_up--> (R, 2F) --swiglu--> (R, F) --down--> (R, H) --weighted sum per token--> (N, H)
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ling.ops.backend import coarse_op, op
from ling.ops.linear import Projection, Weight, grouped_linear
from ling.ops.mlp import swiglu, swiglu_mlp
from ling.ops.precision import at_least_float32
from ling.ops.router import RouterRule, Routing, route
from ling.ops.row_order import order_rows

MixExperts = Callable[[Tensor, Tensor, Tensor, Tensor, Weight, Weight], Tensor]
"""`mix_experts`, or what stands in its place where experts are elsewhere."""


class MoeWeights(NamedTuple):
    """The weights of one sparse layer."""

    gate: Tensor
    """(E, H) router, of any float dtype: it is multiplied in float32."""
    expert_bias: Tensor | None
    """(E,) float32."""
    gate_up_proj: Weight
    """(E, 2F, H) gate rows, then up rows, of each routed expert."""
    down_proj: Weight
    """(E, H, F)."""
    shared: tuple[Weight | Projection, Weight | Projection, Weight | Projection] | None
    """gate, up and down of the shared expert."""


@coarse_op(cpu="ling.ops.cpu.moe")
def moe_layer(
    x: Tensor, weights: MoeWeights, rule: RouterRule, mix: MixExperts | None = None
) -> tuple[Tensor, Routing]:
    """Apply the routed experts and the shared expert.

    x       (N, H)
    mix     brings tokens and routed experts together; None: `mix_experts`, where both are here
    return  (N, H) dtype of x, and where the tokens went
    """
    routing = route(x, weights.gate, weights.expert_bias, rule)
    y = (mix or mix_experts)(x, routing.ids, routing.weights, routing.counts, weights.gate_up_proj, weights.down_proj)
    if weights.shared is not None:
        y = y + swiglu_mlp(x, *weights.shared)
    return y, routing


@op(triton="ling.ops.triton.moe", torch="ling.ops.torch.moe", invariant="ling.ops.invariant.moe")
def mix_experts(x: Tensor, ids: Tensor, mix: Tensor, counts: Tensor, gate_up_proj: Weight, down_proj: Weight) -> Tensor:
    """Send each token through its k experts and add up their outputs times `mix`.

    x  (N, H); ids, mix (N, k); counts (E,); gate_up_proj (E, 2F, H); down_proj (E, H, F)
    return (N, H): outputs are weighted and summed in float32, then rounded to the dtype of x
    """
    (N, H), k = x.shape, ids.shape[1]
    order = order_rows(ids, counts)
    rows = x[order.pair_of_row // k]  # (R, H)
    out = apply_experts(rows, gate_up_proj, down_proj, order.offsets)  # (R, H)
    per_token = at_least_float32(out[order.row_of_pair]).view(N, k, H)
    return (per_token * mix[..., None]).sum(1).to(x.dtype)


def apply_experts(rows: Tensor, gate_up_proj: Weight, down_proj: Weight, offsets: Tensor) -> Tensor:
    """Send each group of rows through its expert.

    rows  (R, H) sorted by expert; gate_up_proj (E, 2F, H); down_proj (E, H, F); offsets (E,) as in `grouped_linear`
    return (R, H)
    """
    gate, up = grouped_linear(rows, gate_up_proj, offsets).chunk(2, dim=1)
    return grouped_linear(swiglu(gate, up), down_proj, offsets)
