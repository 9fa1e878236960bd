"""Which layers multiply in FP8, what that loses, and which go back to bfloat16.

In FP8 are the linear maps of blocks and the routed experts. Not so the embedding, the head, the projection of an MTP
layer, routers, norms and the residual stream (spec: training.md 5): they stay what the model computes in.

A layer leaves FP8 for good when an operand loses more than the configuration allows. It is measured every so many
steps, so a run that goes on from a checkpoint measures at the same steps and comes to the same decisions. On several
ranks each measures what it multiplies, and the worst of them counts for all.
"""

import difflib
import logging
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ling.config.fp8 import Fp8Config, read_choice
from ling.errors import CheckpointError, ConfigError
from ling.log import log_once
from ling.model.block import Block
from ling.model.linear import Linear
from ling.model.moe import SparseMoe
from ling.model.transformer import CausalLM
from ling.ops.fp8 import E4M3, E5M2
from ling.ops.fp8_experts import fp8_mix_experts
from ling.ops.fp8_linear import Fp8Rule, Watch, fp8_linear
from ling.ops.fp8_matmul import fp8_grouped_matmul
from ling.ops.fp8_tensor import Fp8Tensor, RowsOf, measure_loss
from ling.ops.fp8_trial import try_products
from ling.ops.linear import Weight, linear
from ling.ops.moe import mix_experts

logger = logging.getLogger(__name__)

KINDS = {
    "attention": "*.attention.*",
    "dense": "*.mlp.[gud]*_proj",
    "experts": "*.mlp.experts",
    "shared": "*.shared_experts.*",
}
"""Words for patterns of layers."""


class Measured(NamedTuple):
    """What a step's FP8 operands lost, in per cent, and what came of it."""

    underflow_percent: float
    """The worst operand's share of values that became zero."""
    distortion_percent: float
    """The worst operand's error relative to its norm."""
    worst_layer: str
    """That of the larger distortion."""
    bfloat16_layers: tuple[str, ...]
    """Layers that have left FP8 so far."""


class Fp8Layer:
    """One layer's products, and what its operands lost while it is being measured."""

    def __init__(self, name: str, rule: Fp8Rule) -> None:
        self.name, self.rule = name, rule
        self.is_fp8 = True
        self.losses: dict[str, Tensor] | None = None
        """By operand, (2,) underflow and distortion of the worst microbatch; None: nobody looks."""

    @property
    def watch(self) -> Watch | None:
        return None if self.losses is None else self._note

    @torch.no_grad()
    def _note(self, operand: str, values: Tensor | RowsOf, quantised: Fp8Tensor) -> None:
        assert self.losses is not None
        if operand in self.losses and quantised.layout == "block":
            return  # a weight, which is the same in every microbatch of a step
        found = torch.stack(measure_loss(values, quantised))
        before = self.losses.get(operand)
        self.losses[operand] = found if before is None else torch.maximum(before, found)


class _Product(Fp8Layer):
    """Stands in a `Linear`'s `multiply`."""

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        return fp8_linear(x, weight, self.rule, self.watch) if self.is_fp8 else linear(x, weight)


class _Mix(Fp8Layer):
    """Stands in a `SparseMoe`'s `mix`, or in that of the exchange which stands there."""

    def __call__(self, x: Tensor, ids: Tensor, mix: Tensor, counts: Tensor, gate_up: Weight, down: Weight) -> Tensor:
        if not self.is_fp8:
            return mix_experts(x, ids, mix, counts, gate_up, down)
        assert isinstance(gate_up, Tensor), "stored codes are not trained"
        assert isinstance(down, Tensor), "stored codes are not trained"
        return fp8_mix_experts(x, ids, mix, counts, gate_up, down, self.rule, self.watch)


class Fp8Layers:
    """The layers of one model that multiply in FP8."""

    def __init__(self, model: CausalLM, config: Fp8Config) -> None:
        """Change how `model` multiplies.

        ConfigError if a pattern means none of its layers, or the back end does not multiply by their weights.
        """
        self.config = config
        self.layers: list[Fp8Layer] = []
        found = {
            f"model.layers.{i}.{name}": module
            for i, block in enumerate(model.model.layers)
            for name, module in _layers_of(block)
        }
        choices = choose(found, config)
        for name, module in found.items():
            if choices[name] == "bfloat16":
                continue
            kind = E5M2 if choices[name] == "e5m2" else E4M3
            rule = Fp8Rule(kind, config.scales == "power_of_two", config.weight_gradients == "fp8", config.backend)
            layer: Fp8Layer
            if isinstance(module, Linear):
                layer = module.multiply = _Product(name, rule)
            else:
                # Where experts are on several ranks, what brings rows to them asks how those here multiply.
                place: Any = module if module.mix is None else module.mix
                assert place.mix is None, f"how the experts of {name} multiply is settled: {place.mix}"
                layer = place.mix = _Mix(name, rule)
            self.layers.append(layer)
        if config.backend != "auto":
            _try_backend({layer.name: found[layer.name] for layer in self.layers}, self.layers)

    def begin(self, step: int) -> None:
        """Measure during update `step`, counted from 0, if it is time."""
        every = self.config.measure_every
        if every and step % every == 0:
            for layer in self.layers:
                layer.losses = {} if layer.is_fp8 else None

    def judge(self, step: int, largest: Callable[[Tensor], Tensor] | None = None) -> Measured | None:
        """End the measurement of update `step`: send layers to bfloat16 that lost too much; None without one.

        largest  of each value over the ranks that share the model, all of which call this: a layer leaves on all of
                 them or on none; None: there is one
        """
        measured = [(layer, operand) for layer in self.layers for operand in layer.losses or ()]
        if not measured:
            return None
        found = torch.stack([layer.losses[operand] for layer, operand in measured if layer.losses]).mul(100)
        values = (found if largest is None else largest(found)).tolist()
        for layer in self.layers:
            layer.losses = None
        for (layer, operand), (underflow, distortion) in zip(measured, values, strict=True):
            within = underflow <= self.config.max_underflow_percent and distortion <= self.config.max_distortion_percent
            if layer.is_fp8 and not within:  # NaN is not within
                layer.is_fp8 = False
                logger.warning(
                    "%s computes in bfloat16 from step %d on: in FP8 its %s lost %.3g %% of its values and %.3g %% of "
                    "its norm; train.fp8 allows %g and %g", layer.name, step + 2, operand, underflow, distortion,
                    self.config.max_underflow_percent, self.config.max_distortion_percent,
                )  # fmt: skip
        worst = max(range(len(values)), key=lambda i: _order(values[i][1]))
        return Measured(
            max((u for u, _ in values), key=_order), values[worst][1], measured[worst][0].name, self.in_bfloat16
        )

    @property
    def in_bfloat16(self) -> tuple[str, ...]:
        """Names of layers that have left FP8."""
        return tuple(layer.name for layer in self.layers if not layer.is_fp8)

    def state(self) -> list[str]:
        """Return what a checkpoint keeps, as JSON has it."""
        return list(self.in_bfloat16)

    def restore(self, state: Any, where: str) -> None:
        """Go on from what `state` returned; CheckpointError that begins with `where` if it is anything else."""
        if not isinstance(state, list) or not all(isinstance(name, str) for name in state):
            raise CheckpointError(f"{where} does not hold names of layers under fp8; copy it again")
        for layer in self.layers:
            layer.is_fp8 = layer.name not in state


def choose(names: Iterable[str], config: Fp8Config) -> dict[str, str]:
    """Return e4m3, e5m2 or bfloat16 for each layer; ConfigError if a pattern means none."""
    chosen: dict[str, str] = dict.fromkeys(names, config.gradients)
    for entry in config.layers:
        pattern, choice = read_choice(entry)
        meant = [name for name in chosen if fnmatchcase(name, KINDS.get(pattern, pattern))]
        if not meant:
            near = difflib.get_close_matches(pattern, [*KINDS, *chosen], 1)
            hint = f"did you mean {near[0]}?" if near else f"words for kinds: {', '.join(KINDS)}"
            raise ConfigError(f"train.fp8.layers has {pattern!r}, but this model has no such layer; {hint}")
        chosen |= dict.fromkeys(meant, choice)
    return chosen


def _try_backend(modules: Mapping[str, Linear | SparseMoe], layers: Iterable[Fp8Layer]) -> None:
    """Multiply once by a weight of every size that layers have; ConfigError if their back end cannot."""
    tried = set()
    for layer in layers:
        module = modules[layer.name]
        weights = [module.weight] if isinstance(module, Linear) else list(module.experts.parameters())
        grouped = isinstance(module, SparseMoe)
        if grouped and layer.rule.backend not in fp8_grouped_matmul.backends:  # type: ignore[attr-defined]
            log_once(logger, f"{layer.rule.backend} has no grouped products; those of experts keep the usual choice")
            continue
        for weight in weights:
            M, K = weight.shape[-2:]
            case = M, K, grouped, layer.rule
            if case not in tried and (reason := try_products(layer.rule, (M, K), weight.device, grouped=grouped)):
                raise ConfigError(
                    f"train.fp8.backend {layer.rule.backend} is not for {layer.name}: {reason}; use auto, or put the "
                    "layer in bfloat16 (train.fp8.layers)"
                )
            tried.add(case)


def _layers_of(block: nn.Module) -> Iterable[tuple[str, Linear | SparseMoe]]:
    """Yield a block's layers under the names that patterns mean, experts as `mlp.experts`."""
    assert isinstance(block, Block), type(block)
    inner: Mapping[str, nn.Module] = {"attention": block.attention, "mlp": block.mlp}
    for prefix, part in inner.items():
        for name, module in part.named_modules():
            if isinstance(module, Linear):
                yield f"{prefix}.{name}", module
            elif isinstance(module, SparseMoe):
                yield f"{prefix}.experts", module


def _order(value: float) -> float:
    return value if value == value else float("inf")
