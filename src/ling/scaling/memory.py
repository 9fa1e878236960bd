"""Bytes per GPU of a training step, by what they are for, at the fullest moment of the fullest rank.

A step is walked through as it runs: each block's forward, the losses, both halves of each block backward, the update.
Every moment is a sum over categories, so what is reported adds up and belongs to one point in time; taking each
category at its own largest would count activations and gradients that never meet.

What it leaves out: the framework's own memory (CUDA context, communication buffers, fragmentation, workspaces inside
kernels), for which `hardware.USABLE_FRACTION` keeps room.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from ling.config import ModelConfig
from ling.scaling.activations import INDEX, BlockBytes, Workload, block_bytes, norm_bytes, tokens_per_rank
from ling.scaling.layout import Layout, check_layout
from ling.scaling.precision import Precision
from ling.scaling.stored import Stage, Unit, distinct_stages, split_into_stages

CHUNK_ELEMENTS, MIN_CHUNK_ROWS = 2**21, 64
"""Logits at once, and fewest rows (ling.ops.torch.cross_entropy)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """Bytes at one moment."""

    parameters: float = 0
    """As kept between steps: this rank's shards, or everything where nothing is sharded."""
    gradients: float = 0
    master: float = 0
    """Float32 copies of parameters that are kept in fewer bytes."""
    moments: float = 0
    gathered: float = 0
    """Whole weights of the blocks that run, in the compute dtype, and their gradients before they are shared out."""
    dense: float = 0
    """Activations of dense blocks."""
    sparse: float = 0
    """Activations of blocks with experts."""
    mtp: float = 0
    """Activations of MTP blocks."""
    loss: float = 0
    """A chunk of logits; gradients of head and hidden states that the loss makes on its way forward."""
    dispatch: float = 0
    """Buffers between expert ranks."""
    working: float = 0
    """What the operation at hand needs beside its saved inputs."""
    inputs: float = 0
    """Token ids, positions, labels, rotation tables."""

    @property
    def total(self) -> float:
        return sum(getattr(self, name) for name in CATEGORIES)


_UPDATE_BYTES = 12
"""Per weight, of what Muon makes an update of: float32, and its products in bfloat16."""
CATEGORIES = tuple(f.name for f in fields(Bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """The fullest moment of a step on the fullest rank."""

    peak: Bytes
    moment: str
    """When: "forward of block 3, feed-forward", "loss", "update", ..."""
    resting: Bytes
    """Between steps."""
    stage: int
    """Of the pipeline."""
    totals: dict[str, float]
    """Bytes by moment, in the order of a step."""


def plan_memory(model: ModelConfig, layout: Layout, work: Workload, precision: Precision) -> MemoryPlan:
    """Predict the memory of one step; ConfigError if `model` cannot be divided so."""
    check_layout(model, layout, work.sequence_length)
    stages = distinct_stages(split_into_stages(model, layout))
    plans = [_Walk(model, stage, layout, work, precision).plan() for stage in stages]
    return max(plans, key=lambda plan: plan.peak.total)


class _Walk:
    """One rank's way through a step: `held` changes as it goes, `_note` records a moment."""

    def __init__(self, model: ModelConfig, stage: Stage, layout: Layout, work: Workload, precision: Precision) -> None:
        self.model, self.stage, self.layout, self.work, self.precision = model, stage, layout, work, precision
        self.N = tokens_per_rank(work, layout)
        self.stream = self.N * model.hidden_size * precision.compute_bytes
        self.seen = self.stream * layout.tensor
        """Of the tokens of all tensor ranks, which meet this rank's words."""
        self.vocabulary = model.vocab_size // layout.tensor * model.hidden_size
        self.gathers = precision.sharded == "all" and (
            layout.weight_shards > 1 or precision.parameter != precision.compute_bytes
        )
        self.accumulates = work.microbatches > 1 or precision.sharded == "optimizer"
        self.units = (*stage.blocks, *stage.mtp)
        kinds = {unit.kind for unit in self.units}
        by_kind = {kind: block_bytes(model, kind, work, layout, precision) for kind in kinds}
        self.bytes: list[BlockBytes] = [by_kind[unit.kind] for unit in self.units]
        self.held = dict.fromkeys(CATEGORIES, 0.0)
        self.noted: dict[str, dict[str, float]] = {}

    def plan(self) -> MemoryPlan:
        self._keep_state()
        resting = Bytes(**self.held)
        self._begin()
        self._forward()
        if self.stage.head is not None:
            self._losses()
        self._backward()
        self._finish(resting)
        totals = {name: sum(held.values()) for name, held in self.noted.items()}
        moment = max(totals, key=lambda name: totals[name])
        return MemoryPlan(
            peak=Bytes(**self.noted[moment]), moment=moment, resting=resting, stage=self.stage.number, totals=totals
        )

    # ---- parts of a step ----

    def _keep_state(self) -> None:
        p, units = self.precision, self.stage.units
        self._hold("parameters", sum(p.parameter * self._part(u, p.sharded == "all") for u in units))
        self._hold("master", sum(p.master * self._part(u) for u in units))
        if not p.paged_moments:
            blocks = p.moments if p.matrix_moments is None else p.matrix_moments
            self._hold("moments", sum((blocks if u in self.units else p.moments) * self._part(u) for u in units))
        if p.sharded == "optimizer":
            self._hold("gradients", sum(self._gradient(u) for u in units))

    def _begin(self) -> None:
        ids, tables = INDEX * (3 + 2 * len(self.stage.mtp)), self.model.rotated_dim * self.precision.compute_bytes
        self._hold("inputs", self.N * (ids + tables))
        if self.work.microbatches > 1 and self.precision.sharded == "all":
            self._hold("gradients", sum(self._gradient(u) for u in self.stage.units))
        if self.gathers:  # embedding and head are needed first and last, and stay
            roots = [u for u in self.stage.units if u not in self.units]
            self._hold("gathered", self.precision.compute_bytes * sum(u.total for u in roots))
        in_flight = min(self.work.microbatches, self.layout.pipeline - self.stage.number)
        for unit, b in zip(self.units, self.bytes):  # forward done, backward still to come
            self._hold(_category(unit), (in_flight - 1) * (b.kept + b.outputs))

    def _forward(self) -> None:
        residual = 0 if self.precision.fused else 2 * self.stream  # where norms do not save their inputs themselves
        for i, (unit, b) in enumerate(zip(self.units, self.bytes)):
            if i == len(self.stage.blocks):
                self._final_norm()
            category, whole = _category(unit), self._gather(i, i + 1)
            self._hold(category, b.outputs)
            self._note(
                f"forward of {self._name(i)}",
                {category: b.saved, "gathered": whole, "dispatch": b.feed_forward.dispatch},
                working=max(b.attention.forward - b.feed_forward.saved, b.feed_forward.forward) + residual,
            )
            self._hold(category, b.kept)
        if len(self.units) == len(self.stage.blocks):
            self._final_norm()

    def _final_norm(self) -> None:
        if self.stage.head is not None:
            self._hold("loss", self.N * norm_bytes(self.model, self.precision) + self.stream)

    def _losses(self) -> None:
        p, heads, V = self.precision, 1 + len(self.stage.mtp), self.model.vocab_size // self.layout.tensor
        for b in self.bytes:
            self._hold("working", b.logits)
        if not p.chunked_loss:
            # Each head's softmax stays in float32; the last one's logits are there too, and for a moment a second
            # float32 copy: Megatron's compiled exponential makes one and copies it back (its own later remark).
            self._note("loss", loss=self.N * self.layout.tensor * V * (4 * heads + p.compute_bytes + 4))
            self._hold("loss", heads * self.stream)
            return
        low = p.compute_bytes if p.compute_bytes < 4 else 0
        one, scaled = self.seen + 4 * self.vocabulary, self.seen + (4 + low) * self.vocabulary
        rows = min(self.N * self.layout.tensor, max(MIN_CHUNK_ROWS, CHUNK_ELEMENTS // V))
        chunk = rows * (V * (4 + low) + 2 * self.model.hidden_size * p.compute_bytes) + low * self.vocabulary
        self._note("loss", loss=heads * one + chunk)
        self._note("backward of the loss", loss=heads * one + scaled)
        self._hold("loss", heads * self.stream)
        self._hold("gradients", 0 if self._adds_in_place() else p.compute_bytes * self.vocabulary)

    def _backward(self) -> None:
        p = self.precision
        for i in reversed(range(len(self.units))):
            unit, b = self.units[i], self.bytes[i]
            category, name = _category(unit), self._name(i)
            again = 0 if p.fused or self.layout.recompute == "none" else self.stream
            made = (p.compute_bytes if self.gathers else p.gradient) * unit.total
            if p.sharded == "optimizer":
                made = 0
            whole = self._gather(i, i - 1) + self._in_reduction(i + 1)
            common = {"gathered": whole + made} if self.gathers else {"gradients": made}
            self._hold(category, -b.kept)
            self._note(
                f"backward of {name}, feed-forward, before its gradients",
                {category: b.saved + again, "dispatch": b.feed_forward.dispatch, "gathered": whole},
                working=b.feed_forward.backward_first,
            )
            self._note(
                f"backward of {name}, feed-forward",
                {category: b.saved + again, "dispatch": b.feed_forward.dispatch, **common},
                working=b.feed_forward.backward,
            )
            self._note(
                f"backward of {name}, attention",
                {category: b.attention.saved + again, **common},
                working=b.attention.backward,
            )
            self._hold("working", -b.logits if self.stage.head is not None else 0)
            if not self.accumulates:
                self._hold("gradients", self._gradient(unit))
            if unit.kind == "mtp" and not self._adds_in_place():
                self._hold("gradients", p.compute_bytes * self.vocabulary)  # of the embedding of tokens ahead

    def _finish(self, resting: Bytes) -> None:
        p, reads = self.precision, self.stage.embedding is not None
        if reads and p.sharded == "all":
            self._note("backward of the embedding", gradients=p.compute_bytes * self.vocabulary)
        if self.gathers:
            roots = sum(u.total for u in self.stage.units if u not in self.units)
            extra = p.compute_bytes * self.vocabulary * reads
            self._note("reducing embedding and head", gathered=extra + p.gradient * roots)
        held = sum(b.outputs for b in self.bytes) + self.stream * (1 + len(self.stage.mtp))
        self.held = {name: getattr(resting, name) for name in CATEGORIES}
        if p.sharded == "all":
            self._hold("gradients", sum(self._gradient(u) for u in self.stage.units))
        largest = max((unit.sharded(self.layout) for unit in self.units), default=0)
        self._note("update", working=held + min(p.update, _UPDATE_BYTES * largest))

    # ---- sizes ----

    def _part(self, unit: Unit, sharded: bool = True) -> float:
        return unit.sharded(self.layout) if sharded else unit.total

    def _gradient(self, unit: Unit) -> float:
        return self.precision.gradient * self._part(unit, self.precision.sharded == "all")

    def _adds_in_place(self) -> bool:
        """Whether a gradient goes into a buffer that is there anyway."""
        return self.precision.sharded == "optimizer"

    def _gather(self, *places: int) -> float:
        """Bytes of the gathered weights of these blocks: the one that runs and the next, fetched ahead."""
        if not self.gathers:
            return 0
        ahead = places if self.layout.weight_shards > 1 else places[:1]
        return self.precision.compute_bytes * sum(self.units[i].total for i in ahead if 0 <= i < len(self.units))

    def _in_reduction(self, place: int) -> float:
        """Bytes of the gradients that the block before in backward has handed to the reduction."""
        if not self.gathers or place >= len(self.units):
            return 0
        return self.precision.gradient * self.units[place].total

    # ---- the record ----

    def _name(self, place: int) -> str:
        main = len(self.stage.blocks)
        return f"block {place}" if place < main else f"MTP block {place - main}"

    def _hold(self, category: str, amount: float) -> None:
        self.held[category] += amount

    def _note(self, moment: str, more: dict[str, float] | None = None, **extra: float) -> None:
        held = dict(self.held)
        for added in (more or {}, extra):
            for name, amount in added.items():
                held[name] += amount
        self.noted[moment] = held


def _category(unit: Unit) -> str:
    return unit.kind


def largest_categories(held: Bytes, count: int = 2) -> Sequence[tuple[str, float]]:
    """Return names and bytes of the largest categories."""
    named = [(name, float(getattr(held, name))) for name in CATEGORIES]
    return sorted(named, key=lambda item: -item[1])[:count]
