"""One optimizer: torch's fused AdamW for every parameter, or Muon for those groups that say so.

Without groups for Muon it is `torch.optim.AdamW(fused=True)` to the bit. It does more in two respects: parameters of
lower precision may keep a float32 master, and the padding row of an embedding, which has no gradient, does not decay.
Parameters may be sharded, each in its own way: what is done element by element is done to this rank's part.

State of a parameter: `step`, `exp_avg`, `exp_avg_sq` (AdamW) or `momentum` (Muon), and `master` where there is one.
It is there from the beginning, so that a checkpoint can be read into it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ling.config.training import OptimConfig
from ling.optim.muon import FullMatrix, MuonRule
from ling.optim.sharding import has_whole_matrices, local, row, through_full_matrix

MUON, ADAMW = "muon", "adamw"


class MuonAdamW(torch.optim.Optimizer):
    """AdamW and Muon over the groups of `build_optimizer`.

    groups      `params`, `weight_decay`, `method` (muon or adamw) and `lr_multiplier`
    parts       of Muon's parameters: rows of each matrix that is stored in one
    still_rows  of embeddings: the row that has no gradient and does not decay
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        optim: OptimConfig,
        *,
        parts: Mapping[Tensor, Sequence[int]] | None = None,
        still_rows: Mapping[Tensor, int] | None = None,
        full_matrix: FullMatrix = through_full_matrix,
    ) -> None:
        super().__init__(groups, {"lr": optim.lr, "method": ADAMW, "weight_decay": 0.0, "lr_multiplier": 1.0})
        self._optim = optim
        self._parts = dict(parts or {})
        self._still_rows = dict(still_rows or {})
        self._rule = MuonRule(optim.muon, full_matrix)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = self._first_state(parameter, group["method"])

    def _first_state(self, parameter: Tensor, method: str) -> dict[str, Tensor]:
        has_master = self._optim.master_weights and parameter.dtype != torch.float32
        state = {"master": parameter.detach().to(torch.float32)} if has_master else {}
        like = state.get("master", parameter.detach())
        if method == MUON:
            return {"momentum": torch.zeros_like(like)} | state
        step = torch.zeros((), dtype=torch.float32, device=parameter.device)  # where the fused kernel wants it
        return {"step": step, "exp_avg": torch.zeros_like(like), "exp_avg_sq": torch.zeros_like(like)} | state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["method"] == MUON:
                for parameter in parameters:
                    self._muon_(parameter, group)
            else:
                self._adamw_(parameters, group)
            for parameter in parameters:
                if "master" in self.state[parameter]:
                    parameter.copy_(self.state[parameter]["master"])

    def _muon_(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        tensors = (state.get("master", parameter.detach()), gradient, state["momentum"])
        target, gradient, momentum = map(local, tensors) if has_whole_matrices(parameter) else tensors
        self._rule.step_(
            target, gradient, momentum, self._parts[parameter], lr=group["lr"], decay=group["weight_decay"]
        )

    def _adamw_(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        still = [kept for p in parameters for kept in self._still(p)]
        plain = [p for p in parameters if "master" not in self.state[p]]
        self._fused_(
            [local(p.detach()) for p in plain],
            [local(p.grad) for p in plain if p.grad is not None],
            [local(self.state[p]["exp_avg"]) for p in plain],
            [local(self.state[p]["exp_avg_sq"]) for p in plain],
            [self.state[p]["step"] for p in plain],
            group,
        )
        for parameter in parameters:
            if "master" in self.state[parameter]:
                self._adamw_of_master_(parameter, group)
        for values, before in still:
            values.copy_(before)

    def _adamw_of_master_(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        """Update a master piece by piece: the gradient in float32 is never there as a whole."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        size = self._optim.muon.chunk_mib << 18  # float32 values
        tensors = (state["master"], gradient, state["exp_avg"], state["exp_avg_sq"])
        for target, g, mean, square in zip(*(local(t).reshape(-1).split(size) for t in tensors)):
            self._fused_([target], [g.to(torch.float32)], [mean], [square], [state["step"].clone()], group)
        state["step"] += 1

    def _fused_(
        self,
        targets: list[Tensor],
        gradients: list[Tensor],
        means: list[Tensor],
        squares: list[Tensor],
        steps: list[Tensor],
        group: Mapping[str, Any],
    ) -> None:
        adamw(
            targets, gradients, means, squares, [], steps,
            fused=True, amsgrad=False, maximize=False, lr=group["lr"], weight_decay=group["weight_decay"],
            beta1=self._optim.beta1, beta2=self._optim.beta2, eps=self._optim.eps,
        )  # fmt: skip

    def _still(self, parameter: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (row, its values) of what must not decay."""
        if parameter not in self._still_rows:
            return []
        held = row(self.state[parameter].get("master", parameter.detach()), self._still_rows[parameter])
        return [] if held is None else [(held, held.clone())]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; torch alone would round masters and moments to the parameters' dtype."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, values in state_dict["state"].items():
            place = parameters[index]
            self.state[place] = {key: value.detach().clone().to(place.device) for key, value in values.items()}
