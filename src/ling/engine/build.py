"""From a checkpoint directory to an engine; and what is said of it at the start."""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from ling.checkpoint import load_model
from ling.checkpoint.pages import PageMode
from ling.config.engine import EngineConfig
from ling.engine.core import Engine
from ling.engine.early import check_overrides, check_sizes, packed_weights, where_read
from ling.engine.invariance import probe
from ling.engine.sizing import held_dtype
from ling.errors import ConfigError
from ling.model import CausalLM
from ling.model.linear import Linear
from ling.model.moe import Experts
from ling.ops.cpu.library import library
from ling.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def open_engine(
    directory: Path | str,
    config: EngineConfig | None = None,
    *,
    dtype: torch.dtype | None = None,
    quantization: str | None = None,
    hf_overrides: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> Engine:
    """Load a checkpoint directory with its tokenizer and build an engine over it, as `load` and `build`."""
    check_sizes(directory, config, dtype=dtype, quantization=quantization, hf_overrides=hf_overrides, device=device)
    model, tokenizer = load(directory, dtype=dtype, quantization=quantization, hf_overrides=hf_overrides, device=device)
    return build(model, tokenizer, config)


_DTYPES = {
    "auto": None, "float32": torch.float32, "float": torch.float32, "bfloat16": torch.bfloat16,
    "float16": torch.float16, "half": torch.float16,
}  # fmt: skip


def dtype_of(option: str, asked: object) -> torch.dtype | None:
    """Return what weights are held in; None: chosen by the device. Raises ConfigError, which names `option`."""
    if isinstance(asked, torch.dtype) and asked in _DTYPES.values():
        return asked
    if not isinstance(asked, str) or asked not in _DTYPES:
        raise ConfigError(f"{option} must be auto, float32, bfloat16 or float16, got {asked}")
    return _DTYPES[asked]


def device_of(option: str, asked: object) -> torch.device:
    """Return where to compute; auto: on a GPU if there is one. Raises ConfigError, which names `option`."""
    has_gpu = torch.cuda.is_available()
    if asked == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    device = None
    if isinstance(asked, str | torch.device):
        with contextlib.suppress(RuntimeError):
            device = torch.device(asked)
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{option} must be cpu, cuda or auto, got {asked}")
    if device.type == "cuda" and not has_gpu:
        raise ConfigError(f"{option} {asked}: this machine has no GPU that torch can use")
    return device


def load(
    directory: Path | str,
    *,
    dtype: torch.dtype | None = None,
    quantization: str | None = None,
    hf_overrides: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    pages: PageMode = "mapped",
) -> tuple[CausalLM, Tokenizer]:
    """Load a checkpoint.

    dtype         that weights are held and computed in; None: float32 on a CPU, elsewhere as published
    quantization  fp8: block-quantised weights stay codes that become values at each use; int8, int4, mixed, or by
                  kind as in int4,head=int8: matrices are packed as they are read; None: values
    hf_overrides  keys laid over config.json, such as rope_scaling; over its llm_config where it has one
    pages         where the weights of a prepared checkpoint lie
    """
    weights = packed_weights("quantization", quantization)
    check_overrides("hf_overrides", hf_overrides)
    directory = Path(directory)
    on_cpu = torch.device(device).type == "cpu"
    if weights is not None and not on_cpu:
        raise ConfigError(f"{quantization} weights are for CPUs; on {device} use fp8, or leave quantization out")
    wanted = dtype or (torch.float32 if on_cpu else None)
    kept: Literal["keep", "dequantize"] = "keep" if quantization == "fp8" else "dequantize"
    overrides = where_read(directory, hf_overrides)
    model = load_model(
        directory, dtype=wanted, device=device, fp8=kept, weights=weights, overrides=overrides,
        pages=pages, huge_pages=True,
    )  # fmt: skip
    if on_cpu and dtype in (torch.bfloat16, torch.float16):
        logger.warning("%s is slower than float32 on most CPUs; nothing is lost in float32", str(dtype)[6:])
    return model.requires_grad_(False), Tokenizer.from_directory(directory)


def build(model: CausalLM, tokenizer: Tokenizer, config: EngineConfig | None = None) -> Engine:
    """Build an engine; one that promises batch invariance is probed first. Raises ConfigError where it cannot hold."""
    engine = Engine(model, tokenizer, config)
    if engine.runner.pads:
        probe(engine.runner)
    return engine


def describe(engine: Engine) -> list[str]:
    """Return lines that say what was found and chosen."""
    model, sizes, config = engine.model.config, engine.sizes, engine.config
    scaling = model.rope_scaling
    stretched = "" if scaling is None else f", {scaling.type} x{scaling.factor:g}"
    mtp = f"{model.num_nextn_predict_layers} layer(s)" if model.num_nextn_predict_layers else "none in the checkpoint"
    if engine.drafting == "none":
        drafting = "off"
    else:
        how = "chosen each step" if config.adaptive_drafts else "always"
        drafting = f"{engine.drafting}, up to {config.num_speculative_tokens} tokens, {how}"
    kept = held_dtype(config, sizes.dtype)
    held = "fp8 with a scale per token and head" if kept == torch.float8_e4m3fn else str(kept)[6:]
    invariance = "off" if not config.batch_invariant else "on, by padding, probed" if engine.runner.pads else "on"
    return [
        f"weights: {_weight_format(engine.model)}, computed in {str(sizes.dtype)[6:]} on {sizes.device}, "
        f"{torch.get_num_threads()} thread(s)",
        f"MTP: {mtp}; drafting: {drafting}",
        f"rope: theta {model.rope_theta:g}, {model.rotated_dim} of {model.head_dim} channels{stretched}; "
        f"context {engine.max_model_len:,}{', ' * bool(sizes.lowered)}{sizes.lowered}",
        f"stop ids: {sorted(engine.stop_ids)}",
        f"cache: {sizes.num_blocks} blocks of {config.block_size} tokens in {held}, {sizes.cache_gib:.2f} GiB, "
        f"prefix caching {'on' if config.enable_prefix_caching else 'off'}",
        f"limits: {config.max_num_seqs} answers at once, {sizes.max_num_batched_tokens} tokens per step, "
        f"{config.max_num_queued} waiting requests",
        f"batch invariance: {invariance}",
        *_shortlist(engine),
    ]


def _shortlist(engine: Engine) -> list[str]:
    head = engine.runner.head
    if head is None or not head.nbytes:
        return []
    return [
        f"head: greedy, by temperature or top-k, 4 of its 8 bits are read first ({head.nbytes / 2**20:.0f} MiB more)"
    ]


def _weight_format(model: CausalLM) -> str:
    packed = {m.packed.format for m in model.modules() if isinstance(m, Linear) and m.packed is not None}
    packed |= {m.packed[0].format for m in model.modules() if isinstance(m, Experts) and m.packed is not None}
    if packed:
        kernels = library()
        return f"{' and '.join(sorted(packed))}, {'torch alone' if kernels is None else f'{kernels.level} kernels'}"
    kept = any(isinstance(m, Linear) and m.weight_scale_inv is not None for m in model.modules())
    kept |= any(isinstance(m, Experts) and m.gate_up_proj_scale_inv is not None for m in model.modules())
    return "fp8 blocks" if kept else str(model.model.word_embeddings.weight.dtype)[6:]
