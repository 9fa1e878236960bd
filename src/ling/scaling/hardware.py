"""What accelerators can do by their makers' data sheets, and how much of it programs get.

The second half of this file is every assumption that a prediction makes about efficiency. Each is a fraction or a
factor with its reason. Exactly one, `DENSE_GEMM`, is fitted to a published figure; see `ling.scaling.published`.
"""

from dataclasses import dataclass

from ling.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One device and what connects it to others; rates are dense, per device and, for links, per direction."""

    name: str
    bf16_tflops: float
    float32_tflops: float
    """Without tensor cores, which is what a float32 product gets."""
    memory_gib: float
    """As torch reports it, which is a little less than the name says."""
    memory_gb_per_second: float
    link_gb_per_second: float
    """To devices of the same node."""
    network_gb_per_second: float
    """To other nodes; by each device's own adapter."""
    gpus_per_node: int = 8

    @property
    def usable_bytes(self) -> float:
        return self.memory_gib * 2**30 * USABLE_FRACTION


HARDWARE = {
    "h100": Hardware(
        name="H100 80GB SXM", bf16_tflops=989.4, float32_tflops=66.9, memory_gib=79.1, memory_gb_per_second=3350,
        link_gb_per_second=450, network_gb_per_second=50,
    ),
    "h200": Hardware(
        name="H200 141GB SXM", bf16_tflops=989.4, float32_tflops=66.9, memory_gib=139.8, memory_gb_per_second=4800,
        link_gb_per_second=450, network_gb_per_second=50,
    ),
    "h800": Hardware(
        name="H800 80GB SXM", bf16_tflops=989.4, float32_tflops=66.9, memory_gib=79.1, memory_gb_per_second=3350,
        link_gb_per_second=200, network_gb_per_second=50,
    ),
    "a100": Hardware(
        name="A100 80GB SXM", bf16_tflops=312, float32_tflops=19.5, memory_gib=79.1, memory_gb_per_second=2039,
        link_gb_per_second=300, network_gb_per_second=25,
    ),
    "b200": Hardware(
        name="B200 180GB SXM", bf16_tflops=2250, float32_tflops=75, memory_gib=178.3, memory_gb_per_second=7700,
        link_gb_per_second=900, network_gb_per_second=50,
    ),
    "rtx4090": Hardware(
        name="RTX 4090 24GB", bf16_tflops=165.2, float32_tflops=82.6, memory_gib=23.6, memory_gb_per_second=1008,
        link_gb_per_second=25, network_gb_per_second=12.5,
    ),
}  # fmt: skip
"""By the name that `ling plan --gpu` takes; "cpu" is measured where it runs."""


def hardware(name: str) -> Hardware:
    """Return the device called `name`; ConfigError that lists them if there is none."""
    if name not in HARDWARE:
        raise ConfigError(f"unknown GPU {name}; known: {', '.join(HARDWARE)}, and cpu for this machine")
    return HARDWARE[name]


# ---- memory ----

USABLE_FRACTION = 0.92
"""Of a device's memory, for tensors. The published log reserves 5.4 % more than its tensors take; CUDA context and
communication buffers take 1 to 2 GiB of 80."""

# ---- products ----

DENSE_GEMM = 0.565
"""Of the bf16 peak, for products with one weight. FITTED: it makes Llama-3.1-8B on 8 GPUs come out as published."""
GROUPED_GEMM = 0.8
"""Of `DENSE_GEMM`, for one product per expert, where rows are many: tiles at the ends of groups are not full."""
ATTENTION = 0.4
"""Of the bf16 peak, for causal flash attention: about 400 of 989 TFLOP/s on a Hopper device."""
ATTENTION_BACKWARD = 2.5
"""Backward over forward: five products in place of two."""
FLOAT32_GEMM = 0.6
"""Of the float32 peak, for the router."""
FP8_SPEEDUP = 1.0
"""Of FP8 products with their quantisation over bf16. Reports for mixtures of experts run from 0.7 to 1.2."""

# ---- memory traffic ----

STREAMING = 0.8
"""Of the memory's rate, for passes over activations, weights and optimizer state."""
PASSES = 5
"""Over each saved activation: written and read in forward, read in backward, its gradient written and read."""

# ---- communication ----

LINK = 0.75
"""Of a link's rate within a node, for large messages."""
NETWORK = 0.8
"""Of the network's rate between nodes."""
HIDDEN = 0.8
"""Share of the compute time that gathering weights and reducing gradients can hide behind."""
EXPOSED_DISPATCH = 1.0
"""Share of the all-to-all between expert ranks that nothing overlaps: all of it, as long as we issue it plainly."""
