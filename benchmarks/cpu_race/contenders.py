"""Who is compared: an engine, a model of random weights in a form, and what a step of it reads."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu_race.side import Asked
from benchmarks.peers import ROOT, peer_python
from benchmarks.random_mini import make
from ling.checkpoint.gguf import plan_gguf
from ling.checkpoint.names import published_pieces
from ling.checkpoint.packing import read_weights
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.prepared import packed_bytes, packed_model
from ling.compat.handover import plan_handover, write_handover
from ling.config import ModelConfig
from ling.config.engine import EngineConfig
from ling.engine.bundled import bundled_directory
from ling.engine.head import MOST_ROWS
from ling.engine.sizing import bytes_per_block
from ling.ops.cpu.library import opened

BEST_Q4 = "q4_0,head=q6_k"
"""What llama.cpp's own quantiser writes for Q4_0."""
_Q6_K_OVER_Q8_0 = (210 / 256) / (34 / 32)
_SPARE_BYTES = 1.5e9
"""Beside weights and cache: two interpreters, activations, the system."""


@dataclass(frozen=True)
class Contender:
    """An engine with a model.

    form     of the weights: one of `ling convert --dtype`, of GGUF's, or bfloat16
    options  of the engine's side
    """

    engine: str
    model: Path
    config: ModelConfig
    form: str
    options: dict[str, Any] = field(default_factory=dict)

    def step_bytes(self, asked: Asked, experts: float) -> float:
        """Return the bytes that a step of decoding must read; 0 for a prompt, which computes rather than reads.

        experts  routed ones that a layer reads; each is read once
        """
        if asked["do"] != "decode":
            return 0.0
        held = asked["streams"] * (asked["context"] + asked["tokens"] / 2)
        shared, routed = self._weight_bytes
        if self.options.get("shortlist") and asked["streams"] <= MOST_ROWS[opened().level]:
            shared -= self.config.vocab_size * self.config.hidden_size / 2
        return shared + routed * experts / max(1, self.config.num_experts) + self.cache_bytes * held

    def needs_bytes(self, length: int) -> float:
        """Return the memory that running needs with a cache for `length` tokens."""
        return sum(self._weight_bytes) + self.cache_bytes * length + _SPARE_BYTES

    @property
    def cache_bytes(self) -> int:
        """Of one token: ours float32 unless told otherwise, of the others half precision."""
        if self.engine != "ling":
            return 2 * 2 * self.config.num_hidden_layers * self.config.num_key_value_heads * self.config.head_dim
        config = EngineConfig(kv_cache_dtype=self.options.get("cache", "auto"))
        return bytes_per_block(self.config, config, torch.float32) // config.block_size

    @cached_property
    def _weight_bytes(self) -> tuple[float, float]:
        """What every step reads, and all routed experts. Of the embedding a step reads a row."""
        if self.engine == "ling":
            state = packed_model(self.config, read_weights(self.form)).state_dict()
            sizes = {key: float(tensor.nbytes) for key, tensor in state.items()}
        elif self.engine == "llama.cpp":
            plan = plan_gguf(self.config, self.form.split(",")[0])  # type: ignore[arg-type]
            sizes = {tensor.name: float(tensor.nbytes) for tensor in plan}
            if self.form == BEST_Q4:
                sizes["output.weight"] *= _Q6_K_OVER_Q8_0
        else:
            sizes = {p.key: 2.0 * torch.Size(p.shape).numel() for p in published_pieces(self.config)}
        left = {key: size for key, size in sizes.items() if "word_embeddings" not in key and "token_embd" not in key}
        routed = sum(size for key, size in left.items() if ".mlp.experts." in key or "_exps." in key)
        return sum(left.values()) - routed, routed


def prepare(contenders: Iterable[Contender], scratch: Path, *, workers: int) -> None:
    """Write the models that are not there yet; end the program where the disk is too small."""
    missing: dict[Path, Contender] = {}
    for contender in contenders:
        if not contender.model.exists():
            missing.setdefault(contender.model, contender)
    needed = sum(1.02 * packed_bytes(contender.config, _packed_like(contender.form)) for contender in missing.values())
    if shutil.disk_usage(scratch).free < needed:
        sys.exit(f"{needed / 1e9:.0f} GB of disk are needed in {scratch}; name another --scratch")
    for contender in missing.values():
        if contender.engine == "vllm":
            _export(contender, workers)
        elif contender.form == BEST_Q4:
            _requantize(contender, workers)
        else:
            make(contender.model, contender.config, contender.form, workers=workers)


def remove(contenders: Iterable[Contender]) -> None:
    for path in {contender.model for contender in contenders}:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _packed_like(form: str) -> Any:
    """Return packed weights that take at least as much room as `form`."""
    if form == "bfloat16":
        return {}
    return read_weights({"q8_0": "int8", "q4_0": "int4,head=int8", BEST_Q4: "int4,head=int8"}.get(form, form))


def _export(contender: Contender, workers: int) -> None:
    """Write a random model as `ling export --for vllm` does; files of its weights are shared with the random one."""
    random = contender.model.with_name(f"{contender.model.name}-random")
    make(random, contender.config, contender.form, workers=workers)
    plan = plan_handover(
        open_pieces(random), "vllm", str(contender.model), dtype="bfloat16", tokenizer=bundled_directory()
    )
    write_handover(plan, contender.model)
    shutil.rmtree(random)


def _requantize(contender: Contender, workers: int) -> None:
    source = contender.model.with_name(contender.model.name.replace(f"-{BEST_Q4}", "-q4_0"))  # written before it
    partial = contender.model.with_suffix(".partial")
    with tempfile.TemporaryDirectory() as place:
        request = Path(place, "request.json")
        asked = {"source": str(source), "target": str(partial), "threads": workers}
        request.write_text(json.dumps({"out": place, "requantize": asked}))
        command = [peer_python("llama_cpp"), "-m", "benchmarks.llama_cpp_probe", str(request)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    partial.rename(contender.model)
