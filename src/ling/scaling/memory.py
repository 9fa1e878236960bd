"""Bytes per GPU of a training step, by what they are for, at the fullest moment of the fullest rank.

A step is walked through as it runs: each block's forward, the losses, both halves of each block backward, the update.
Every moment is a sum over categories, so what is reported adds up and belongs to one point in time; taking each
category at its own largest would count activations and gradients that never meet.

What it leaves out: the framework's own memory (CUDA context, communication buffers, fragmentation, workspaces inside
kernels), for which `hardware.USABLE_FRACTION` keeps room.
"""

from ling.config import ModelConfig
from ling.scaling.activations import INDEX, BlockBytes, Workload, block_bytes, norm_bytes, tokens_per_rank
from ling.scaling.held import CATEGORIES, Bytes, MemoryPlan
from ling.scaling.layout import Layout, check_layout
from ling.scaling.parameters import count_adapters
from ling.scaling.precision import Precision
from ling.scaling.stored import Stage, Unit, distinct_stages, split_into_stages

CHUNK_ELEMENTS, MIN_CHUNK_ROWS = 2**21, 64
"""Logits at once, and fewest rows (ling.ops.torch.cross_entropy)."""
ADAPTER_BYTES = 16
"""Per weight of an adapter: itself, its gradient and its moments in float32."""
_UPDATE_BYTES = 12
"""Per weight, of what Muon makes an update of: float32, and its products in bfloat16."""


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
        self.words_gradient = 0 if precision.frozen else precision.compute_bytes * self.vocabulary
        rounds = precision.parameter != precision.compute_bytes and not precision.frozen
        self.gathers = precision.sharded == "all" and (layout.weight_shards > 1 or rounds)
        self.accumulates = precision.sharded == "optimizer" or (work.microbatches > 1 and not precision.releases)
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
        words = p.compute_bytes if p.frozen else p.parameter
        kept = [words if u not in self.units else p.parameter for u in units]
        self._hold("parameters", sum(k * self._part(u, p.sharded == "all") for k, u in zip(kept, units)))
        self._hold("adapters", ADAPTER_BYTES * count_adapters(self.model, p.adapter_rank))
        self._hold("master", sum(p.master * self._part(u) for u in units))
        if not p.paged_moments:
            blocks = p.moments if p.matrix_moments is None else p.matrix_moments
            self._hold("moments", sum((blocks if u in self.units else p.moments) * self._part(u) for u in units))
        if p.sharded == "optimizer":
            self._hold("gradients", sum(self._gradient(u) for u in units))

    def _begin(self) -> None:
        ids, tables = INDEX * (3 + 2 * len(self.stage.mtp)), self.model.rotated_dim * self.precision.compute_bytes
        self._hold("inputs", self.N * (ids + tables))
        if self.accumulates and self.precision.sharded == "all":
            self._hold("gradients", sum(self._gradient(u) for u in self.stage.units))
        if self.gathers:  # embedding and head are needed first and last, and stay
            roots = [u for u in self.stage.units if u not in self.units]
            self._hold("gathered", self.precision.compute_bytes * sum(u.total for u in roots))
        in_flight = min(self.work.microbatches, self.layout.pipeline - self.stage.number)
        for unit, b in zip(self.units, self.bytes):  # forward done, backward still to come
            self._hold(_category(unit), (in_flight - 1) * (b.kept + b.outputs))

    def _forward(self) -> None:
        p = self.precision
        beside = p.measuring + (
            0 if p.fused else 2 * self.stream
        )  # the residual, where norms do not save their inputs themselves
        for i, (unit, b) in enumerate(zip(self.units, self.bytes)):
            if i == len(self.stage.blocks):
                self._final_norm()
            category, whole = _category(unit), self._gather(i, i + 1)
            self._hold(category, b.outputs)
            self._note(
                f"forward of {self._name(i)}",
                {category: b.saved, "gathered": whole, "dispatch": b.feed_forward.dispatch},
                copies=self._codes(unit, 1),
                working=max(b.attention.forward - b.feed_forward.saved, b.feed_forward.forward) + beside,
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
        learnt = 0 if p.frozen else self.vocabulary
        one, scaled = self.seen + 4 * learnt, self.seen + (4 + low) * learnt
        rows = min(self.N * self.layout.tensor, max(MIN_CHUNK_ROWS, CHUNK_ELEMENTS // V))
        chunk = rows * (V * (4 + low) + 2 * self.model.hidden_size * p.compute_bytes) + low * learnt
        self._note("loss", loss=heads * one + chunk)
        self._note("backward of the loss", loss=heads * one + scaled)
        self._hold("loss", heads * self.stream)
        is_used_up = self._adds_in_place() or p.releases
        self._hold("gradients", 0 if is_used_up else self.words_gradient)

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
                copies=self._codes(unit, 2),
                working=b.feed_forward.backward_first + p.measuring,
            )
            self._note(
                f"backward of {name}, feed-forward",
                {category: b.saved + again, "dispatch": b.feed_forward.dispatch, **common},
                copies=self._codes(unit, 2),
                working=b.feed_forward.backward + p.measuring,
            )
            self._note(
                f"backward of {name}, attention",
                {category: b.attention.saved + again, **common},
                working=b.attention.backward + p.measuring,
            )
            self._hold("working", -b.logits if self.stage.head is not None else 0)
            if p.releases:
                self._note(f"update of {name}", gradients=self._gradient(unit), working=self._update_bytes(unit))
            elif not self.accumulates:
                self._hold("gradients", self._gradient(unit))
            if unit.kind == "mtp" and not self._adds_in_place():
                self._hold("gradients", self.words_gradient)  # of the embedding of tokens ahead

    def _finish(self, resting: Bytes) -> None:
        p, reads = self.precision, self.stage.embedding is not None
        if reads and p.sharded == "all":
            self._note("backward of the embedding", gradients=self.words_gradient)
        if self.gathers:
            roots = sum(u.total for u in self.stage.units if u not in self.units)
            extra = self.words_gradient * reads
            self._note("reducing embedding and head", gathered=extra + p.gradient * roots)
        if p.releases:
            return
        held = sum(b.outputs for b in self.bytes) + self.stream * (1 + len(self.stage.mtp))
        self.held = {name: getattr(resting, name) for name in CATEGORIES}
        if p.sharded == "all":
            self._hold("gradients", sum(self._gradient(u) for u in self.stage.units))
        self._note("update", working=held + max(map(self._update_bytes, self.units), default=0))

    # ---- sizes ----

    def _part(self, unit: Unit, sharded: bool = True) -> float:
        return unit.sharded(self.layout) if sharded else unit.total

    def _gradient(self, unit: Unit) -> float:
        return self.precision.gradient * self._part(unit, self.precision.sharded == "all")

    def _update_bytes(self, unit: Unit) -> float:
        return min(self.precision.update, _UPDATE_BYTES * unit.sharded(self.layout))

    def _codes(self, unit: Unit, copies: int) -> float:
        """Bytes of the FP8 codes of the block's largest weight, made so many times; once less where it is codes."""
        if not self.precision.fp8_gemm or self.precision.sharded != "all":
            return 0
        m = self.model
        largest = unit.experts * 2 / 3 if unit.experts else m.hidden_size * max(m.intermediate_size, m.qkv_dim)
        return (copies - self.precision.frozen) * largest

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
