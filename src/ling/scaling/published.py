"""The published training figures beside what the same planner predicts for them. Predictions, not measurements.

Figures: the Ling-V2 repository's table of tokens per second on 8, 16 and 32 "80G GPUs" at sequence length 4096 and
global batches 128, 256 and 512 (spec: training.md 2), and the log of its 8K script.

The GPU is not named there; H800 is assumed, on which the authors' kernels were measured. Ling-mini runs as its 4K
script says: 8 expert ranks, one sequence per microbatch, the sparse layers recomputed. The dense models' layouts are
not published: data parallel without recompute is assumed. One constant, `hardware.DENSE_GEMM`, is fitted to one
figure, Llama-3.1-8B on 8 GPUs. Every other row follows.
"""

import dataclasses
from dataclasses import dataclass

from ling.config import ModelConfig, preset
from ling.scaling.activations import Workload
from ling.scaling.hardware import HARDWARE
from ling.scaling.held import MemoryPlan
from ling.scaling.layout import Layout
from ling.scaling.memory import plan_memory
from ling.scaling.precision import PRECISIONS
from ling.scaling.roofline import StepTime, predict_step

PUBLISHED_GPU = "h800"
PUBLISHED_PRECISION = "megatron_fp8"
SEQUENCE_LENGTH, BATCH_PER_GPU = 4096, 16

# Model, MTP layers, tokens per second on 8, 16 and 32 GPUs.
_TABLE = (
    ("llama31_8b", 0, (81_222, 161_319, 321_403)),
    ("qwen3_8b", 0, (55_775, 109_799, 219_943)),
    ("ling_mini", 1, (109_532, 221_585, 448_726)),
    ("ling_mini", 0, (128_298, 307_264, 611_466)),
)
FITTED = ("llama31_8b", 0, 8)
"""Model, MTP layers and GPUs of the figure that `hardware.DENSE_GEMM` is fitted to."""

LOG_ALLOCATED, LOG_MAX_ALLOCATED = 26_223 * 2**20, 63_360 * 2**20
"""Bytes between steps and at the peak, from the log of the 8K script on 8 GPUs (Megatron's "MB" are MiB)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One published throughput and its prediction."""

    model: str
    mtp_layers: int
    gpus: int
    published: float
    """Tokens per second over all GPUs."""
    predicted: StepTime
    memory: MemoryPlan
    layout: Layout
    fitted: bool
    """Whether a constant was fitted to this figure, so that its agreement says nothing."""

    @property
    def ratio(self) -> float:
        """Predicted over published."""
        return self.predicted.tokens_per_second / self.published


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRow:
    """The memory that the published log prints, and its prediction."""

    memory: MemoryPlan
    resting_ratio: float
    """Predicted over logged, between steps."""
    peak_ratio: float


def reproduce_table() -> list[Row]:
    """Predict every figure of the published table."""
    rows = []
    for name, mtp_layers, figures in _TABLE:
        model = network(name, mtp_layers)
        for gpus, published in zip((8, 16, 32), figures):
            layout = _layout(model, gpus)
            work = Workload(SEQUENCE_LENGTH, 1, BATCH_PER_GPU)
            precision = PRECISIONS[PUBLISHED_PRECISION]
            rows.append(
                Row(
                    model=name,
                    mtp_layers=mtp_layers,
                    gpus=gpus,
                    published=published,
                    predicted=predict_step(model, layout, work, precision, HARDWARE[PUBLISHED_GPU]),
                    memory=plan_memory(model, layout, work, precision),
                    layout=layout,
                    fitted=(name, mtp_layers, gpus) == FITTED,
                )
            )
    return rows


def reproduce_log() -> LogRow:
    """Predict the memory of the published log: 8 GPUs, 8K, two sequences, everything recomputed, MTP."""
    layout = Layout(data_parallel_shard=8, expert=8, recompute="full")
    work = Workload(8192, 2, 8)
    memory = plan_memory(network("ling_mini", 1), layout, work, PRECISIONS[PUBLISHED_PRECISION])
    return LogRow(
        memory=memory,
        resting_ratio=memory.resting.total / LOG_ALLOCATED,
        peak_ratio=memory.peak.total / LOG_MAX_ALLOCATED,
    )


def network(name: str, mtp_layers: int) -> ModelConfig:
    """Return a preset's network with `mtp_layers` MTP layers."""
    return dataclasses.replace(ModelConfig(**preset(name)["model"]), num_nextn_predict_layers=mtp_layers)


def _layout(model: ModelConfig, gpus: int) -> Layout:
    if not model.num_moe_layers:
        return Layout(data_parallel_shard=gpus)
    return Layout(data_parallel_shard=gpus, expert=8, recompute="selective")
