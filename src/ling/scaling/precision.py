"""What is held per parameter, and in how many bytes, by our trainer and by the published one."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from ling.config.model import DType

MEASURED_ELEMENTS, _MEASURED_BYTES = 2**23, 24
"""Of a piece of an operand, and per element of it: values, what codes say, and what those are made of
(ling.ops.fp8_tensor)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Bytes per parameter of what a training state consists of, and how it is divided among ranks."""

    compute: DType
    """Dtype of activations, and of weights where they meet them."""
    parameter: float
    gradient: float
    master: float
    """Float32 copies that are updated; 0: the parameters are updated themselves."""
    moments: float
    """Both moments of Adam."""
    sharded: Literal["all", "optimizer"]
    """all: everything is sharded and a block's weights gathered when it runs (FSDP2); optimizer: parameters and
    gradients are whole on every rank, master weights and moments sharded (ZeRO-1)."""
    fused: bool
    """Whether norms and feed-forwards save only their inputs (our float32 backward passes do)."""
    chunked_loss: bool
    """Whether the loss is computed in chunks of rows, so that no logits of all tokens exist."""
    fp8_gemm: bool = False
    row_multiple: int = 16
    """At which each expert's rows begin where products are in FP8 (`ling.config.fp8.row_multiple`)."""
    measuring: float = 0
    """Bytes that comparing an FP8 operand with its codes is given at most."""
    adapter_rank: int = 0
    """Of LoRA beside weights that stay as they are, embedding and head in the compute dtype; 0: the weights learn."""
    recomputes_layer: bool = False
    """Whether selective recompute means a whole sparse layer, not the routed experts alone."""
    matrix_moments: float | None = None
    """Of the weights of blocks, where it differs: Muon keeps one moment. Their routers and norms, which it leaves to
    Adam, are less than a hundredth of them."""
    update: float = 0
    """Bytes that an update is given at most."""
    releases: bool = False
    """Whether a layer's gradients are used up as soon as backward has made them (ling.train.in_backward)."""
    paged_moments: bool = False
    """Moments lie where the allocator does not count them, and may move to the host."""

    @property
    def frozen(self) -> bool:
        """Whether the weights themselves stay as they are."""
        return self.adapter_rank > 0

    @property
    def compute_bytes(self) -> int:
        return 4 if self.compute == "float32" else 2


def with_muon(precision: Precision, chunk_mib: int) -> Precision:
    """Return what is held where Muon updates the matrices of blocks, so many MiB of them at a time."""
    return dataclasses.replace(precision, matrix_moments=precision.moments / 2, update=chunk_mib * 2**20)


def with_states(precision: Precision, weights: str, moments: str, *, master: bool = False) -> Precision:
    """Return what is held with the given `optim.weights` and `optim.moments`."""
    bytes_of = {"float32": 4.0, "bfloat16": 2.0, "fp8": 1 + 4 / 256, "dynamic8": 1 + 4 / 256}
    kept = bytes_of[weights]
    return dataclasses.replace(
        precision, parameter=kept, gradient=min(kept, precision.gradient), moments=2 * bytes_of[moments],
        master=4.0 if master and weights != "float32" else precision.master,
    )  # fmt: skip


def with_measuring(precision: Precision) -> Precision:
    """Return what is held where FP8's losses are measured (`train.fp8.measure_every`), a piece at a time."""
    return dataclasses.replace(precision, measuring=_MEASURED_BYTES * MEASURED_ELEMENTS)


def with_row_multiple(precision: Precision, multiple: int) -> Precision:
    """Return what is held where each expert's rows begin at this multiple (`train.fp8`)."""
    return dataclasses.replace(precision, row_multiple=multiple)


def with_release(precision: Precision) -> Precision:
    """Return what is held with `optim.in_backward`: of gradients, one layer's."""
    return dataclasses.replace(precision, releases=True)


PRECISIONS = {
    "float32": Precision(
        compute="float32", parameter=4, gradient=4, master=0, moments=8, sharded="all", fused=True, chunked_loss=True
    ),
    # FSDP2 with float32 shards that are gathered in bfloat16 and reduced in float32.
    "bfloat16": Precision(
        compute="bfloat16", parameter=4, gradient=4, master=0, moments=8, sharded="all", fused=False, chunked_loss=True
    ),
    "fp8": Precision(
        compute="bfloat16", parameter=4, gradient=4, master=0, moments=8, sharded="all", fused=False,
        chunked_loss=True, fp8_gemm=True,
    ),
    # Weights of blocks as codes with a scale per 128x128, never unpacked; planned, and not in the trainer.
    "lora_fp8": Precision(
        compute="bfloat16", parameter=1 + 4 / 128**2, gradient=0, master=0, moments=0, sharded="all", fused=False,
        chunked_loss=True, fp8_gemm=True, adapter_rank=16,
    ),
    "megatron_bf16": Precision(
        compute="bfloat16", parameter=2, gradient=4, master=4, moments=8, sharded="optimizer", fused=True,
        chunked_loss=False, recomputes_layer=True,
    ),
    # The published recipe: two FP8 copies of a weight (or one in bfloat16), 8-bit moments with a scale per 256.
    "megatron_fp8": Precision(
        compute="bfloat16", parameter=2, gradient=4, master=4, moments=2 * (1 + 4 / 256), sharded="optimizer",
        fused=True, chunked_loss=False, fp8_gemm=True, recomputes_layer=True, paged_moments=True,
    ),
}  # fmt: skip
"""By the name that `ling plan --precision` takes."""
