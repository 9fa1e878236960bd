"""What a person asks of a serving engine, and whether the network can be cut that way.

Engines split a network over devices in two ways: tensor parallelism cuts every layer by heads and by the width of its
feed-forward, pipeline parallelism deals out whole layers. Sizes that do not divide are refused here, before anything
is written, and not by an engine minutes after its start.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ling.checkpoint.save import Precision
from ling.config import ModelConfig
from ling.config.model import RopeScaling
from ling.errors import ConfigError

_FP8_BLOCK = 128
_LARGEST = 512
"""No engine's tensor parallelism is meant beyond this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The shape of a deployment: YaRN goes into the configuration, the rest into the launch line."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    max_model_len: int | None = None
    """Tokens of prompt and answer; None: what the model allows."""
    yarn: float | None = None
    """Factor by which YaRN stretches the context; None: as the model has it."""


def with_yarn(model: ModelConfig, factor: float | None) -> ModelConfig:
    """Return `model` with its trained context stretched `factor` times."""
    if factor is None:
        return model
    scaling = model.rope_scaling
    if scaling is not None and scaling.type != "yarn":
        raise ConfigError(f"--yarn {factor:g}: the model's rotation is already stretched ({scaling.type})")
    trained = model.max_position_embeddings if scaling is None else scaling.original_max_position_embeddings
    assert trained is not None, scaling
    if not 1 < factor <= 10**6:
        raise ConfigError(
            f"--yarn must be a factor above 1 (4 turns {trained} tokens into {4 * trained}), got {factor:g}"
        )
    stretched = RopeScaling(type="yarn", factor=factor, original_max_position_embeddings=trained)
    return replace(model, rope_scaling=stretched, max_position_embeddings=int(factor * trained))


def check_serving(model: ModelConfig, precision: Precision, serving: Serving) -> None:
    """Refuse sizes that do not fit `model`, with those that do."""
    size = serving.tensor_parallel_size
    if why := _why_not(model, precision, size):
        choices = [
            n for n in range(1, min(model.num_attention_heads, _LARGEST) + 1) if not _why_not(model, precision, n)
        ]
        if not choices:
            raise ConfigError(f"{why}: no engine takes FP8 blocks of this network; use --dtype bfloat16")
        raise ConfigError(f"--tensor-parallel-size {size}: {why}. Use {_either(choices)}")
    if not 1 <= serving.pipeline_parallel_size <= model.num_hidden_layers:
        raise ConfigError(
            f"--pipeline-parallel-size {serving.pipeline_parallel_size}: the model has {model.num_hidden_layers} "
            f"layers to deal out. Use 1 to {model.num_hidden_layers}"
        )
    context, asked = model.max_position_embeddings, serving.max_model_len
    if asked is not None and not 1 <= asked <= context:
        stretch = "" if model.rope_scaling else f", or stretch it with --yarn {max(2, -(-asked // context))}"
        raise ConfigError(
            f"--max-model-len {asked}: the model's context has {context} tokens. Use at most {context}{stretch}"
        )


def refuse_other_biases(model: ModelConfig, engine: str) -> None:
    """Refuse networks that vLLM and SGLang would build with other biases than ours."""
    if model.use_bias:
        raise ConfigError(f"use_bias: {engine} gives such a network feed-forward biases that it does not have")
    if model.num_moe_layers and not model.moe_router_enable_expert_bias:
        raise ConfigError(
            f"moe_router_enable_expert_bias false: {engine} takes sigmoid routing only with expert biases"
        )


def _why_not(model: ModelConfig, precision: Precision, size: int) -> str | None:
    """Return why `size` devices cannot share a layer, or None if they can."""
    A, K, D = model.num_attention_heads, model.num_key_value_heads, model.head_dim
    if size < 1:
        return "a number of devices"
    if A % size:
        return f"{A} query heads are not divisible by {size}"
    if K % size and size % K:
        return f"{K} key-value heads cannot be dealt out or repeated over {size} devices"
    widths = dict(_widths(model))
    for name, width in widths.items():
        if width % size:
            return f"the {name} of {width} is not divisible by {size}"
    if precision != "float8":
        return None
    heads = {"query heads": A // size * D, "key heads": max(1, K // size) * D}
    for name, part in (*heads.items(), *((name, width // size) for name, width in widths.items())):
        if part % _FP8_BLOCK:
            return f"a device's part of the {name} ({part} rows) is not a multiple of FP8's blocks of {_FP8_BLOCK}"
    return None


def _widths(model: ModelConfig) -> Iterator[tuple[str, int]]:
    if model.first_k_dense_replace:
        yield "dense layers' width", model.intermediate_size
    if model.num_moe_layers or model.num_nextn_predict_layers:
        yield "experts' width", model.moe_intermediate_size
        if model.shared_expert_dim:
            yield "shared expert's width", model.shared_expert_dim


def _either(choices: list[int]) -> str:
    *rest, last = map(str, choices)
    return f"{', '.join(rest)} or {last}" if rest else last
