"""Predicted time of a training step, term by term: what each resource needs, and which of them binds.

A product takes the larger of its FLOPs over what its kind achieves and its bytes over the memory's rate. Everything
between products is memory traffic. Communication is what does not hide behind compute. A pipeline adds its bubble.
Nothing here is measured on the device it speaks of: constants stand in `ling.scaling.hardware`, each with its reason.
"""

from dataclasses import dataclass

from ling.config import ModelConfig
from ling.scaling import hardware as fact
from ling.scaling.activations import Workload, block_bytes, rank_visits, tokens_per_rank
from ling.scaling.flops import count_flops
from ling.scaling.hardware import Hardware
from ling.scaling.layout import Layout
from ling.scaling.precision import Precision
from ling.scaling.stored import Stage, Unit, distinct_stages, split_into_stages

TERMS = {
    "dense_gemm": "products with one weight",
    "grouped_gemm": "products with one weight per expert",
    "router": "the router's float32 products",
    "attention": "attention",
    "traffic": "memory traffic between products",
    "optimizer": "memory traffic of the update",
    "dispatch": "all-to-all between expert ranks",
    "sharding": "gathering weights and reducing gradients, beyond what compute hides",
    "tensor": "all-reduce between tensor ranks",
    "context": "keys and values between context ranks",
    "bubble": "pipeline stages waiting",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step on one rank."""

    terms: dict[str, float]
    """By a name of `TERMS`."""
    tokens: int
    """Of the whole step, over all ranks."""
    gpus: int
    tflops: float
    """Model FLOPs per second and GPU (ling.scaling.flops; recomputation does not count)."""
    mfu_percent: float
    """Of the dense bf16 peak, or of the float32 peak in float32."""

    @property
    def seconds(self) -> float:
        return sum(self.terms.values())

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs."""
        return self.tokens / self.seconds

    @property
    def tokens_per_second_per_gpu(self) -> float:
        return self.tokens_per_second / self.gpus

    @property
    def binding(self) -> str:
        """Name of the largest term."""
        return max(self.terms, key=lambda name: self.terms[name])


def predict_step(
    model: ModelConfig, layout: Layout, work: Workload, precision: Precision, device: Hardware
) -> StepTime:
    """Predict the time of one step of `work.microbatches` microbatches."""
    stages = distinct_stages(split_into_stages(model, layout))
    rates = _Rates(precision, device)
    timed = [_StageTime(model, stage, layout, work, precision, rates).terms() for stage in stages]
    terms = max(timed, key=lambda terms: sum(terms.values()))
    tokens = work.microbatches * work.micro_batch * work.sequence_length * layout.data_parallel
    flops = count_flops(model, work.sequence_length).training * tokens / layout.gpus
    seconds = sum(terms.values())
    peak = device.float32_tflops if precision.compute == "float32" else device.bf16_tflops
    return StepTime(
        terms={name: terms[name] for name in TERMS},
        tokens=tokens,
        gpus=layout.gpus,
        tflops=flops / seconds / 1e12,
        mfu_percent=100 * flops / seconds / (peak * 1e12),
    )


class _Rates:
    """What of the data sheet is achieved, per second."""

    def __init__(self, precision: Precision, device: Hardware) -> None:
        self.peak = 1e12 * (device.float32_tflops if precision.compute == "float32" else device.bf16_tflops)
        self.dense = self.peak * fact.DENSE_GEMM * (fact.FP8_SPEEDUP if precision.fp8_gemm else 1)
        self.grouped = self.dense * fact.GROUPED_GEMM
        self.attention = self.peak * fact.ATTENTION
        self.router = 1e12 * device.float32_tflops * fact.FLOAT32_GEMM
        self.memory = 1e9 * device.memory_gb_per_second * fact.STREAMING
        self.link = 1e9 * device.link_gb_per_second * fact.LINK
        self.network = 1e9 * device.network_gb_per_second * fact.NETWORK
        self.gpus_per_node = device.gpus_per_node

    def gather(self, ranks: int) -> float:
        """Bytes that each rank receives of something everybody gets; a node's adapters share the work."""
        return self.link if ranks <= self.gpus_per_node else min(self.link, self.network * self.gpus_per_node)


class _StageTime:
    """Seconds of one step on a rank of one pipeline stage."""

    def __init__(
        self,
        model: ModelConfig,
        stage: Stage,
        layout: Layout,
        work: Workload,
        precision: Precision,
        rates: _Rates,
    ) -> None:
        self.model, self.stage, self.layout, self.work, self.precision = model, stage, layout, work, precision
        self.rates = rates
        self.N, self.b = tokens_per_rank(work, layout), precision.compute_bytes
        self.G = self.N * layout.tensor
        """Tokens of all tensor ranks, which meet this rank's heads, widths and words."""
        self.units = (*stage.blocks, *stage.mtp)
        self.sparse = sum(unit.experts > 0 for unit in self.units)
        layer = int(precision.recomputes_layer)
        self.again = {"none": (0, 0, 0), "selective": (0, layer, 1), "full": (1, 1, 1)}[layout.recompute]
        """Attention, feed-forward but for its routed experts, and these."""

    def terms(self) -> dict[str, float]:
        """Return seconds by name."""
        m, p = self.work.microbatches, self.layout.pipeline
        once = self._microbatch()
        compute = sum(once.values())
        terms = {name: m * seconds for name, seconds in once.items()}
        hidden = fact.HIDDEN * compute
        repeated, final = self._sharding_each(), self._sharding_per_step()
        terms["sharding"] = m * max(0.0, repeated - hidden) + max(0.0, final - hidden)
        terms["bubble"] = sum(terms.values()) * (p - 1) / m
        terms["optimizer"] = self._update()
        return terms

    def _microbatch(self) -> dict[str, float]:
        """Everything that repeats with each microbatch but the sharding of weights."""
        attention_again, feed_forward_again, experts_again = self.again
        return {
            "dense_gemm": self._dense(3 + attention_again, 3 + feed_forward_again),
            "grouped_gemm": self._grouped(3 + experts_again),
            "router": self._router(3 + feed_forward_again),
            "attention": self._attention(1 + attention_again + fact.ATTENTION_BACKWARD),
            "traffic": self._traffic(),
            "dispatch": self._dispatch(2 + experts_again),
            "tensor": self._tensor(2 + feed_forward_again),
            "context": self._context(2 + attention_again),
        }

    # ---- products; `passes` counts forward as one and backward as two ----

    def _dense(self, attention_passes: int, feed_forward_passes: int) -> float:
        m, T = self.model, self.layout.tensor
        H, q_dim = m.hidden_size, m.num_attention_heads * m.head_dim
        seconds = 0.0
        for unit in self.units:
            seconds += attention_passes * self._product(self.G, H * (m.qkv_dim + q_dim) // T)
            width = m.intermediate_size if unit.kind == "dense" else m.shared_expert_dim
            seconds += feed_forward_passes * self._product(self.G, 3 * H * width // T)
            seconds += 3 * self._product(self.N, 2 * H * H) * (unit.kind == "mtp")
        if self.stage.head is not None:
            seconds += 3 * (1 + len(self.stage.mtp)) * self._product(self.G, m.vocab_size * H // T)
        return seconds

    def _product(self, tokens: int, weights: int) -> float:
        return max(2 * tokens * weights / self.rates.dense, self.b * weights / self.rates.memory)

    def _grouped(self, passes: int) -> float:
        m = self.model
        if not self.sparse:
            return 0.0
        rows = self.N * m.num_experts_per_tok * (self.work.imbalance if self.layout.expert > 1 else 1)
        weights = 3 * m.hidden_size * m.moe_intermediate_size
        local = weights * m.num_experts // self.layout.expert
        activations = rows * (2 * m.hidden_size + 3 * m.moe_intermediate_size)
        flops = 2 * rows * weights / (self.rates.grouped)
        return self.sparse * passes * max(flops, self.b * (local + activations) / self.rates.memory)

    def _router(self, passes: int) -> float:
        flops = 2 * self.N * self.model.hidden_size * self.model.num_experts
        return self.sparse * passes * flops / self.rates.router

    def _attention(self, passes: float) -> float:
        heads = self.model.num_attention_heads // self.layout.tensor * self.model.head_dim
        flops = 2 * self.G * self.work.sequence_length * heads  # causal half of two products
        return len(self.units) * passes * flops / self.rates.attention

    # ---- memory ----

    def _traffic(self) -> float:
        m = self.model
        total = 0.0
        for unit in self.units:
            b = block_bytes(m, unit.kind, self.work, self.layout, self.precision)
            attention, layer, experts = self.again
            again = attention * b.attention.saved + experts * b.feed_forward.routed
            again += layer * (b.feed_forward.saved - b.feed_forward.routed)
            total += fact.PASSES * b.saved + 2 * again  # forward once more writes and reads
        if self.stage.head is not None:
            logits = self.G * m.vocab_size // self.layout.tensor * (1 + len(self.stage.mtp))
            total += logits * (4 * 4 + 2 * self.b)  # float32: maximum, exponent, gradient; then two products read it
        return total / self.rates.memory

    def _update(self) -> float:
        """Seconds of the optimizer's pass over a rank's weights, gradients and state.

        Where gradients do not stay, each microbatch but the last takes them into the moments.
        """
        p = self.precision
        held = sum(unit.sharded(self.layout) for unit in self.stage.units)
        once = 2 * (p.parameter + p.master + p.moments) + p.gradient
        gathered = (self.work.microbatches - 1) * (2 * p.moments + p.gradient) if p.releases else 0.0
        return 0.0 if p.frozen else held * (once + gathered) / self.rates.memory

    # ---- communication ----

    def _dispatch(self, passes: int) -> float:
        """Rows to the experts and back, once per pass; backward is the same way round."""
        E = self.layout.expert
        if E == 1 or not self.sparse:
            return 0.0
        sent = self.N * rank_visits(self.model, E) * (1 - 1 / E) * self.model.hidden_size * self.b
        away = max(0.0, 1 - self.rates.gpus_per_node / E)  # share of the rows that leave the node
        seconds = max(sent * (1 - away) / self.rates.link, sent * away / self.rates.network)
        return self.sparse * passes * 2 * seconds * fact.EXPOSED_DISPATCH

    def _tensor(self, passes: int) -> float:
        T = self.layout.tensor
        if T == 1:
            return 0.0
        bytes_ = 2 * (T - 1) / T * self.G * self.model.hidden_size * self.b
        return len(self.units) * passes * 2 * bytes_ / self.rates.gather(T)

    def _context(self, passes: int) -> float:
        C, m = self.layout.context, self.model
        if C == 1:
            return 0.0
        keys_and_values = 2 * m.num_key_value_heads // self.layout.tensor * m.head_dim * self.b
        return len(self.units) * passes * (C - 1) * self.G * keys_and_values / self.rates.gather(C * self.layout.tensor)

    def _sharding_each(self) -> float:
        """Seconds of gathering (forward, backward) and reducing weights, which FSDP repeats each microbatch."""
        if self.precision.sharded != "all" or self.layout.weight_shards == 1:
            return 0.0
        return sum(self._exchange(unit, 2 * self.b + self.precision.gradient) for unit in self.stage.units)

    def _sharding_per_step(self) -> float:
        """Seconds of what is exchanged once: gradients of replicas; under ZeRO-1 gradients and new weights."""
        if self.precision.sharded == "optimizer":
            return sum(self._exchange(unit, self.b + self.precision.gradient) for unit in self.stage.units)
        copies = self.layout.data_parallel_replicate
        if copies == 1:
            return 0.0
        held = sum(unit.sharded(self.layout) for unit in self.stage.units) * self.precision.gradient
        return 2 * held * (1 - 1 / copies) / self.rates.network

    def _exchange(self, unit: Unit, bytes_per_weight: float) -> float:
        ranks, experts = self.layout.weight_shards, self.layout.expert_shards
        dense = (unit.split + unit.whole) * (1 - 1 / ranks) / self.rates.gather(ranks * self.layout.tensor)
        # Ranks that hold the same experts are `expert` apart.
        stacked = unit.experts * (1 - 1 / experts) / self.rates.gather(ranks * self.layout.tensor)
        return bytes_per_weight * (dense + stacked)
