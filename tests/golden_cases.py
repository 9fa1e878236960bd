"""Access to the reference numbers in tests/golden (see its README for what each tensor is)."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ling.checkpoint import load_model
from ling.checkpoint.names import published_pieces
from ling.config import ModelConfig
from ling.model import CausalLM, PackedBatch
from ling.ops.cross_entropy import IGNORE
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


def packed_labels(run: Run, depth: int) -> Tensor:
    """Return (1 + depth, N): what each slot predicts, labels shifted within each padded row."""
    labels = run.data["in.labels"]
    padded = torch.cat([labels, torch.full_like(labels, IGNORE)], 1)
    return torch.stack([run.pack(padded[:, i : i + labels.shape[1]]) for i in range(1, depth + 2)])


def reference_losses(config: ModelConfig, run: Run) -> tuple[Tensor, list[Tensor]]:
    """Return the total and the MTP losses to expect.

    Upstream scores the last slot of a row against the next row; the recorded value without that leak is taken. Under
    left padding it also scores what padding slots predict; there the losses of the recorded logits are taken, over
    slots that are not padding.
    """
    depth, data = config.num_nextn_predict_layers, run.data
    if bool(run.mask[:, 0].all()):
        mtp = [data.get(f"alt.mtp_loss_per_row.{i}", data.get(f"out.mtp_loss.{i}")) for i in range(depth)]
        return data.get("alt.loss_per_row", data["out.loss"]).squeeze(), [loss.squeeze() for loss in mtp]
    names = ["out.logits", *(f"out.mtp_logits.{i}" for i in range(depth))]
    scored = zip(names, packed_labels(run, depth), strict=True)
    main, *mtp = (cross_entropy(run.pack(data[name]), labels, ignore_index=IGNORE) for name, labels in scored)
    return main + config.mtp_loss_scaling_factor * sum(mtp), mtp


def published_gradients(model: nn.Module, config: ModelConfig) -> dict[str, Tensor]:
    """Return gradients under published names: stacked experts cut apart."""
    of_parameter = {name: p.grad for name, p in model.named_parameters()}
    pieces = [p for p in published_pieces(config) if p.parameter in of_parameter]
    return {p.key: p.part_of(of_parameter[p.parameter]) for p in pieces}
