"""The sparse feed-forward: router, stacked experts, shared expert (spec: model.md 4.3, 4.4)."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ling.config import ModelConfig
from ling.model.mlp import MLP
from ling.model.packed import PackedPlace
from ling.model.pinned import PinnedDtype
from ling.ops.fp8 import Fp8BlockWeight, num_blocks
from ling.ops.linear import Projection, Weight
from ling.ops.moe import MixExperts, MoeWeights, moe_layer
from ling.ops.packed import PackedFormat
from ling.ops.router import RouterRule, Routing

T = TypeVar("T")


class Router(PinnedDtype):
    """`weight` (E, H) and the buffer `expert_bias` (E,): float32 whatever the model is cast to.

    A bias step of 1e-3 is lost beside a bias of 0.5 in bfloat16, and rounded router weights choose other experts. A
    weight that rounding does not change can be kept in bfloat16.
    """

    pinned = True

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(model.num_experts, model.hidden_size, dtype=torch.float32))
        self.expert_bias: Tensor | None
        bias = torch.zeros(model.num_experts, dtype=torch.float32) if model.moe_router_enable_expert_bias else None
        self.register_buffer("expert_bias", bias)

    def keep_as(self, dtype: torch.dtype) -> None:
        """Hold `weight` in `dtype`, not to be trained any more; it is still multiplied in float32."""
        if self.weight.dtype != dtype:
            self.weight = nn.Parameter(self.weight.detach().to(dtype), requires_grad=False)

    def forward(self, use: Callable[[Tensor, Tensor, Tensor | None], T], x: Tensor) -> T:
        """Call `use` with x, weight and bias; through the module's call, as `Experts.forward`."""
        return use(x, self.weight, self.expert_bias)


class Experts(PinnedDtype):
    """Routed experts, stacked: `gate_up_proj` (E, 2F, H), gate rows first, and `down_proj` (E, H, F)."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        E, F, H = model.num_experts, model.moe_intermediate_size, model.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * F, H))
        self.down_proj = nn.Parameter(torch.empty(E, H, F))
        self.gate_up_proj_scale_inv: Tensor | None
        self.down_proj_scale_inv: Tensor | None
        self.register_buffer("gate_up_proj_scale_inv", None)
        self.register_buffer("down_proj_scale_inv", None)
        self.packed: tuple[PackedPlace, PackedPlace] | None = None

    def forward(self, use: Callable[[Tensor, Weight, Weight], T], x: Tensor) -> T:
        """Call `use` with x, gate_up and down as ops take them.

        Through the module's call, so that what is around it can change the weights meanwhile, or gather them; `x`
        passes through, so that it sees when their gradients are complete.
        """
        return use(x, *self.quantities())

    def quantities(self) -> tuple[Weight, Weight]:
        """Return gate_up and down as ops take them."""
        if self.packed is not None:
            return self.packed[0].weight(self), self.packed[1].weight(self)
        if self.gate_up_proj_scale_inv is None or self.down_proj_scale_inv is None:
            return self.gate_up_proj, self.down_proj
        F, H = self.down_proj.shape[2], self.down_proj.shape[1]
        return (
            Fp8BlockWeight(self.gate_up_proj, self.gate_up_proj_scale_inv, (F, F)),
            Fp8BlockWeight(self.down_proj, self.down_proj_scale_inv, (H,)),
        )

    def keep_fp8(self) -> None:
        """Make room for codes and scales in place of the values; gate and up keep a scale grid each."""
        self.pinned = True
        E, H, F = self.down_proj.shape
        device = self.down_proj.device
        for name in ("gate_up_proj", "down_proj"):
            codes = torch.empty(getattr(self, name).shape, dtype=torch.float8_e4m3fn, device=device)
            setattr(self, name, nn.Parameter(codes, requires_grad=False))
        self.gate_up_proj_scale_inv = torch.empty(E, 2 * num_blocks(F), num_blocks(H), device=device)
        self.down_proj_scale_inv = torch.empty(E, num_blocks(H), num_blocks(F), device=device)

    def keep_packed(self, format: PackedFormat) -> None:
        """Make room for packed codes and scales in place of the values; gate and up begin with a tile each."""
        self.pinned = True
        H, F = self.down_proj.shape[1:]
        self.packed = (
            PackedPlace(self, "gate_up_proj", format, (F, F)),
            PackedPlace(self, "down_proj", format, (H,)),
        )


class SparseMoe(nn.Module):
    """One sparse feed-forward; returns its output and where the tokens went."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(model)
        self.experts = Experts(model)
        self.shared_experts = MLP(model.hidden_size, model.shared_expert_dim) if model.shared_expert_dim else None
        self.mix: MixExperts | None = None
        """What brings tokens and routed experts together; None: `mix_experts`, where both are here."""
        self.rule = RouterRule(model.num_experts_per_tok, model.n_group, model.topk_group, model.routed_scaling_factor)

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        shared = self._shared()

        def apply(x: Tensor, gate_up: Weight, down: Weight) -> tuple[Tensor, Routing]:
            def apply_routed(x: Tensor, gate: Tensor, bias: Tensor | None) -> tuple[Tensor, Routing]:
                return moe_layer(x, MoeWeights(gate, bias, gate_up, down, shared), self.rule, self.mix)

            routed: tuple[Tensor, Routing] = self.gate(apply_routed, x)
            return routed

        output: tuple[Tensor, Routing] = self.experts(apply, x)
        return output

    def weights(self) -> MoeWeights:
        """Return the weights as ops take them, of experts that are all here."""
        gate = self.gate
        return MoeWeights(gate.weight, gate.expert_bias, *self.experts.quantities(), self._shared())

    def _shared(self) -> tuple[Weight | Projection, Weight | Projection, Weight | Projection] | None:
        return None if self.shared_experts is None else self.shared_experts.quantities()
