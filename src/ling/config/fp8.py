"""The section `train.fp8`: products in FP8, layer by layer, and when a layer leaves them."""

from dataclasses import dataclass
from typing import Literal

from ling.config.fields import check_fields, shown
from ling.errors import ConfigError

CHOICES = ("e4m3", "e5m2", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Config:
    """FP8 products of the blocks' linear maps and experts; read if `train.precision` is fp8."""

    layers: tuple[str, ...] = ()
    """Entries `pattern=choice` for layers that differ; the last that means a layer counts. A pattern is a name with
    `*`, or attention, dense, experts, shared; choices are e4m3, e5m2 (of output gradients), bfloat16 (no FP8)."""
    gradients: Literal["e4m3", "e5m2"] = "e4m3"
    """Codes of output gradients; inputs and weights are always e4m3."""
    scales: Literal["power_of_two", "float32"] = "power_of_two"
    """power_of_two: rounded, so that scaling is exact, as published; float32: the whole range of the codes is used."""
    weight_gradients: Literal["bfloat16", "fp8"] = "bfloat16"
    """Operands of weight gradients. fp8: kept rows are quantised a second time, in tiles of 128 tokens."""
    backend: Literal["auto", "triton", "scaled_mm", "deep_gemm"] = "auto"
    """What makes the products of y and dx. auto: our Triton kernels on a GPU. scaled_mm: torch's, of cuBLASLt, for
    linear maps. deep_gemm: DeepGEMM (`sgl-deep-gemm`), experts too. Both need Hopper; not yet measured on a GPU."""
    measure_every: int = 100
    """Steps between measurements of what FP8 loses of each operand; 0: never, so that no layer leaves FP8."""
    max_underflow_percent: float = 5.0
    """A layer computes in bfloat16 from the next step on if more of an operand's values than this became zero."""
    max_distortion_percent: float = 10.0
    """Likewise, if an operand's error is larger than this, relative to its norm: 3 is usual of e4m3, 5 of e5m2."""

    def __post_init__(self) -> None:
        check_fields(self, "train.fp8")
        for entry in self.layers:
            read_choice(entry)
        if self.measure_every < 0:
            raise ConfigError(f"train.fp8.measure_every must not be negative, got {self.measure_every}")
        for name in ("max_underflow_percent", "max_distortion_percent"):
            if not 0 < getattr(self, name) <= 100:
                raise ConfigError(f"train.fp8.{name} must lie above 0 and not above 100, got {getattr(self, name)}")

    @property
    def row_multiple(self) -> int:
        """Each expert's rows begin at a multiple of this."""
        return row_multiple(fp8_weight_gradients=self.weight_gradients == "fp8", backend=self.backend)


def row_multiple(*, fp8_weight_gradients: bool, backend: str) -> int:
    """Return what each expert's rows begin at a multiple of: 16 bytes of codes, unless tiles of 128 rows are read."""
    return 128 if fp8_weight_gradients or backend == "deep_gemm" else 16


def read_choice(entry: str) -> tuple[str, str]:
    """Return (pattern, choice) of an entry of `train.fp8.layers`; ConfigError unless it is one."""
    pattern, _, choice = entry.rpartition("=")
    if not pattern or choice not in CHOICES:
        raise ConfigError(
            f"train.fp8.layers has {shown(entry)}; an entry is pattern=choice with one of {', '.join(CHOICES)}, such "
            "as attention=bfloat16"
        )
    return pattern, choice
