"""Access to the reference numbers in tests/golden (see its README for what each tensor is)."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ling.checkpoint import load_model
from ling.model import CausalLM, PackedBatch
from ling.ops.ragged import Ragged

GOLDEN = Path(__file__).parent / "golden"
MANIFEST: dict[str, Any] = json.loads((GOLDEN / "manifest.json").read_text())


@dataclass(frozen=True)
class Run:
    """One run of one case. Padded (B, S) data is packed: padding is dropped, rows keep their order."""

    case: str
    name: str
    kind: str
    far: bool

    def __str__(self) -> str:
        return f"{self.case}-{self.name}"

    @property
    def directory(self) -> Path:
        return GOLDEN / "forward" / self.case

    @cached_property
    def data(self) -> dict[str, Tensor]:
        return load_file(self.directory / f"run_{self.name}.safetensors")

    @property
    def ids(self) -> Tensor:
        return self.data["in.input_ids"]

    @property
    def mask(self) -> Tensor:
        """(B, S) bool, False at padding."""
        return self.data.get("in.attention_mask", torch.ones_like(self.ids)).bool()

    @property
    def positions(self) -> Tensor:
        """(B, S): as given, or counted from 0 including padding, as upstream does."""
        return self.data.get("in.position_ids", torch.arange(self.ids.shape[1]).expand_as(self.ids))

    @property
    def compared(self) -> Tensor:
        """(N,) bool over packed rows."""
        return self.data.get("in.compare_mask", self.mask).bool()[self.mask]

    def pack(self, padded: Tensor) -> Tensor:
        """Return the rows of (B, S, ...) that are not padding: (N, ...)."""
        return padded[self.mask]

    def expected(self, name: str) -> Tensor:
        return self.pack(self.data[name])[self.compared]

    def batch(self, mtp_depth: int) -> PackedBatch:
        """Pack the run; MTP reads what upstream reads, which shifts whole rows, padding included."""
        rows = Ragged(self.mask.sum(1).tolist())
        shifted, ids = [], self.ids
        for _ in range(mtp_depth):
            ids = torch.cat([ids[:, 1:], torch.zeros_like(ids[:, :1])], 1)
            shifted.append(self.pack(ids))
        return PackedBatch(rows, torch.stack(shifted) if shifted else None)


def runs(*kinds: str) -> list[Run]:
    """Return all runs of some kinds, in the manifest's order."""
    return [
        Run(case, run["name"], run["kind"], "tolerance" in run)
        for case, entry in MANIFEST["forward"].items()
        for run in entry["runs"]
        if run["kind"] in kinds
    ]


def load_case(case: str, dtype: torch.dtype = torch.float32) -> CausalLM:
    return load_model(GOLDEN / "forward" / case, dtype=dtype)
