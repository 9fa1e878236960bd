"""One optimizer: torch's fused AdamW for every parameter, or Muon for those groups that say so.

Without groups for Muon it is `torch.optim.AdamW(fused=True)` to the bit. It does more in three respects: parameters of
lower precision may keep a float32 master, or else are rounded stochastically; moments may be kept in one byte each; and
the padding row of an embedding, which has no gradient, does not decay. Parameters may be sharded, each in its own way:
what is done element by element is done to this rank's part, with the blocks and the noise of the whole parameter.

State of a parameter: `step`, `exp_avg`, `exp_avg_sq` (AdamW) or `momentum` (Muon), `exp_avg_scale` and the like where
a moment is codes, and `master` where there is one. It is there from the beginning, so that a checkpoint can be read
into it. Noise is no state: it is a function of `optim.rounding_seed`, the number of updates, a parameter's name and the
place in it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ling.config.training import OptimConfig
from ling.distributed.parts import first_element, local
from ling.ops.adamw import AdamWRule, Moment
from ling.ops.noise import noise_key
from ling.optim.clipping import UpdateRatios, mean_square_ratio
from ling.optim.gather import gather_, share_of
from ling.optim.moments import LEAST_ELEMENTS, SCALE, kind_of, moment_format, zeros
from ling.optim.muon import FullMatrix, MuonRule
from ling.optim.sharding import check_parts, has_whole_matrices, of_parts, row, through_full_matrix
from ling.optim.stored import InPlace, Noise, RoundedWeight, Stored, as_stored
from ling.optim.update import adamw_

MUON, ADAMW = "muon", "adamw"


class MuonAdamW(torch.optim.Optimizer):
    """AdamW and Muon over the groups of `build_optimizer`.

    groups      `params`, `weight_decay`, `method` (muon or adamw) and `lr_multiplier`
    names       of parameters, which their noise depends on; None: they are numbered
    parts       of Muon's parameters: rows of each matrix that is stored in one
    still_rows  of embeddings: the row that has no gradient and does not decay
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        optim: OptimConfig,
        *,
        names: Mapping[Tensor, str] | None = None,
        parts: Mapping[Tensor, Sequence[int]] | None = None,
        still_rows: Mapping[Tensor, int] | None = None,
        full_matrix: FullMatrix = through_full_matrix,
    ) -> None:
        super().__init__(
            groups, {"lr": optim.lr, "method": ADAMW, "weight_decay": 0.0, "lr_multiplier": 1.0, "updates": 0}
        )
        self._optim = optim
        self._parts = dict(parts or {})
        self._still_rows = dict(still_rows or {})
        self._rule = MuonRule(optim.muon, full_matrix)
        self._ratios = UpdateRatios(self._square_ratio)
        every = [parameter for group in self.param_groups for parameter in group["params"]]
        self._names = dict(names or {p: str(i) for i, p in enumerate(every)})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = self._first_state(parameter, group["method"])

    @property
    def updates(self) -> int:
        """Updates done, which noise depends on."""
        return self.param_groups[0]["updates"]

    @updates.setter
    def updates(self, count: int) -> None:
        self._ratios.forget()
        for group in self.param_groups:
            group["updates"] = count

    def _first_state(self, parameter: Tensor, method: str) -> dict[str, Tensor]:
        has_master = self._optim.master_weights and parameter.dtype != torch.float32
        state = {"master": parameter.detach().to(torch.float32)} if has_master else {}
        is_small = parameter.dim() < 2 or parameter.numel() < LEAST_ELEMENTS
        kept_in = "float32" if is_small else self._optim.moments

        def moment(key: str) -> dict[str, Tensor]:
            form = moment_format(kept_in, kind_of(key))
            if form.has_scale:
                check_parts(parameter, self._names[parameter], kept_in)
            return zeros(key, parameter.detach(), form)

        if method == MUON:
            return moment("momentum") | state
        step = torch.zeros((), dtype=torch.float32, device=parameter.device)  # where the fused kernel wants it
        return {"step": step} | moment("exp_avg") | moment("exp_avg_sq") | state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            self._update_(group["params"], group)
        self.updates += 1

    @torch.no_grad()
    def update_(self, parameters: Collection[Tensor]) -> None:
        """Update those of some parameters that have a gradient; the caller counts `updates`, once for all of a step."""
        chosen = set(parameters)
        for group in self.param_groups:
            self._update_([p for p in group["params"] if p in chosen], group)

    @torch.no_grad()
    def gather_(self, parameters: Collection[Tensor], microbatch: int) -> None:
        """Put gradients into the moments, so that an update by those of a later microbatch is one by all of them.

        The second moment takes up the sum of their squares, not the square of their sum (AdamA, arXiv 2305.19982);
        momentum is exact, as long as it is not Nesterov's.
        """
        chosen = set(parameters)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in chosen and parameter.grad is not None:
                    self._gather_(parameter, group["method"], microbatch)

    def _gather_(self, parameter: Tensor, method: str, microbatch: int) -> None:
        assert parameter.grad is not None
        gradient, optim, key = local(parameter.grad).reshape(-1), self._optim, self._key(parameter, f"@{microbatch}")
        offset = first_element(parameter)
        if method == MUON:
            share = 1 / optim.muon.momentum  # all of a gradient is added, not 1 - momentum of it
            gather_(gradient, self._flat(parameter, "momentum"), None, key, share, 0.0, offset)
            return
        if optim.clipping == "update":
            self._ratios.add(parameter)
        mean, square = (self._flat(parameter, k) for k in ("exp_avg", "exp_avg_sq"))
        gather_(gradient, mean, square, key, share_of(optim.beta1), share_of(optim.beta2), offset)

    def _update_(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        parameters = [p for p in parameters if p.grad is not None]
        if group["method"] == MUON:
            for parameter in parameters:
                self._muon_(parameter, group)
        elif self._optim.clipping == "update":
            for parameter, ratio in zip(parameters, self._ratios.take(parameters), strict=True):
                self._adamw_([parameter], {**group, "lr": group["lr"] / max(1.0, ratio)})
        else:
            self._adamw_(parameters, group)
        for parameter in parameters:
            if "master" in self.state[parameter]:
                parameter.copy_(self.state[parameter]["master"])

    def _square_ratio(self, parameter: Tensor) -> Tensor:
        state, optim = self.state[parameter], self._optim
        assert parameter.grad is not None
        square = as_stored(self._flat(parameter, "exp_avg_sq"), "square", self._noise(parameter))
        gradient = local(parameter.grad).reshape(-1)
        return mean_square_ratio(gradient, square, state["step"], optim.beta2, optim.eps, parameter.numel())

    def _muon_(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        tensors = (state.get("master", parameter.detach()), gradient, state["momentum"])
        is_plain = self._is_float32(parameter, "momentum")
        is_whole = has_whole_matrices(parameter)
        target, gradient, momentum = map(local, tensors) if is_whole or not is_plain else tensors
        parts, numbers = self._parts[parameter], {"lr": group["lr"], "decay": group["weight_decay"]}
        if is_plain:
            return self._rule.step_(target, gradient, momentum, parts, **numbers)
        noise, full = self._noise(parameter), self._rule.full_matrix
        rule = self._rule if is_whole else replace(self._rule, full_matrix=of_parts(full, parameter))
        rule.step_(
            target, gradient, momentum, parts, **numbers, weights=self._weights(target, noise),
            moments=self._moment(parameter, "momentum", momentum.shape, noise),
        )  # fmt: skip

    def _adamw_(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        still = [kept for p in parameters for kept in self._still(p)]
        plain = [p for p in parameters if self._is_float32(p, "exp_avg") and "master" not in self.state[p]]
        adamw(
            [local(p.detach()) for p in plain],
            [local(p.grad) for p in plain if p.grad is not None],
            [local(self.state[p]["exp_avg"]) for p in plain],
            [local(self.state[p]["exp_avg_sq"]) for p in plain],
            [],
            [self.state[p]["step"] for p in plain],
            fused=True, amsgrad=False, maximize=False, lr=group["lr"], weight_decay=group["weight_decay"],
            beta1=self._optim.beta1, beta2=self._optim.beta2, eps=self._optim.eps,
        )  # fmt: skip
        in_chunks = set(parameters) - set(plain)
        for parameter in parameters:
            if parameter in in_chunks:
                self._adamw_in_chunks_(parameter, group)
        for values, before in still:
            values.copy_(before)

    def _adamw_in_chunks_(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        """Update one parameter piece by piece: neither it nor its gradient or moments are in float32 as a whole."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        mean, square = (self._flat(parameter, k) for k in ("exp_avg", "exp_avg_sq"))
        rule = AdamWRule(
            group["lr"], self._optim.beta1, self._optim.beta2, self._optim.eps, group["weight_decay"],
            self._optim.weight_rounding == "stochastic",
        )  # fmt: skip
        target = local(state.get("master", parameter.detach())).view(-1)
        key, offset = self._key(parameter), first_element(parameter)
        adamw_(target, local(gradient).reshape(-1), mean, square, state["step"], key, rule, offset)
        state["step"] += 1

    def _is_float32(self, parameter: Tensor, key: str) -> bool:
        """Whether what is learnt, the master if there is one, and its moments are kept in float32."""
        state = self.state[parameter]
        return state.get("master", parameter).dtype == state[key].dtype == torch.float32

    def _key(self, parameter: Tensor, part: str = "") -> int:
        return noise_key(self._optim.rounding_seed, self.updates, self._names[parameter] + part)

    def _noise(self, parameter: Tensor) -> Noise:
        return Noise(self._key(parameter), parameter.device, first_element(parameter))

    def _weights(self, target: Tensor, noise: Noise) -> Stored:
        if target.dtype == torch.float32:
            return InPlace(target)
        return RoundedWeight(target, noise if self._optim.weight_rounding == "stochastic" else None)

    def _moment(self, parameter: Tensor, key: str, shape: torch.Size, noise: Noise) -> Stored:
        flat = self._flat(parameter, key)
        return as_stored(Moment(flat.codes.view(shape), flat.scale), kind_of(key), noise)

    def _flat(self, parameter: Tensor, key: str) -> Moment:
        """Return what this rank has of a moment, (n,)."""
        state = self.state[parameter]
        scale = local(state[key + SCALE]).view(-1) if key + SCALE in state else None
        return Moment(local(state[key]).view(-1), scale)

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
