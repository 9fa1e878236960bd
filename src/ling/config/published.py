"""Read any published spelling of `config.json` and write every key explicitly (spec: model.md 2).

Engines build a different network, without a word, when some keys are missing or spelt the other way. So reading
resolves every spelling here and nowhere else, refuses what would be another network, and writing leaves nothing out.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

from ling.config.fields import check_value, declared_types, shown
from ling.config.model import ModelConfig, RopeScaling
from ling.errors import ConfigError

logger = logging.getLogger(__name__)

ARCHITECTURE = "BailingMoeV2ForCausalLM"
MODEL_TYPE = "bailing_moe"

# Keys whose published name and meaning are the field's.
_PLAIN = (
    "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "first_k_dense_replace",
    "num_attention_heads", "use_qk_norm", "use_qkv_bias", "use_bias", "num_experts", "num_experts_per_tok",
    "moe_intermediate_size", "moe_shared_expert_intermediate_size", "routed_scaling_factor",
    "moe_router_enable_expert_bias", "max_position_embeddings", "num_nextn_predict_layers",
    "mtp_loss_scaling_factor", "rms_norm_eps", "tie_word_embeddings", "initializer_range", "pad_token_id",
)  # fmt: skip

# What the network does anyway; any other value would be another network.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "score_function": ("sigmoid",),
    "norm_topk_prob": (True,),
    "use_rmsnorm": (True,),
    "attention_dropout": (0, 0.0),
    "embedding_dropout": (0, 0.0),
    "output_dropout": (0, 0.0),
    "norm_head": (False,),
}

# Read elsewhere, or without meaning for the network. Anything else is announced as ignored.
_SILENT = {
    "architectures", "model_type", "auto_map", "transformers_version", "use_cache", "max_window_layers",
    "output_router_logits", "quantization_config", "bos_token_id", "_name_or_path", "return_dict",
    "output_attentions", "output_hidden_states", "router_dtype",
}  # fmt: skip
_RESOLVED = {
    "num_key_value_heads", "head_dim", "num_shared_experts", "n_group", "topk_group", "rope_theta", "rotary_dim",
    "partial_rotary_factor", "rope_scaling", "rope_parameters", "eos_token_id", "torch_dtype", "dtype",
}  # fmt: skip
_RESHAPED = {"rope_scaling", "rope_parameters", "eos_token_id", "torch_dtype", "dtype"}
"""Those of them that JSON writes in another form than the field's; each is checked where it is converted."""

_MOST_KEYS = 5
"""That a message names."""
_LONG_NAME = 80

PUBLISHED_KEYS = frozenset({*_PLAIN, *_FIXED, *_RESOLVED, "architectures", "model_type"})
"""What `read_published` gives a meaning to."""


def read_published(config: Mapping[str, Any], *, where: str = "config.json") -> ModelConfig:
    """Build the ModelConfig that a published `config.json` means.

    config  the parsed JSON; a nested `llm_config` is followed
    where   file name for messages
    Raises ConfigError for another architecture, a contradiction, or a setting this network does not have.
    """
    try:
        return _read(config, where)
    except ConfigError as error:
        message = " ".join(str(error).split())  # names quoted from the file may hold line breaks
        raise ConfigError(f"{where}: {message.removeprefix('model.')}") from None


def write_published(model: ModelConfig) -> dict[str, Any]:
    """Return `config.json` for `model` with every key that any known engine reads, spelt out."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        **{key: getattr(model, key) for key in _PLAIN},
        "num_key_value_heads": model.num_key_value_heads,
        "head_dim": model.head_dim,
        "num_shared_experts": model.num_shared_experts,
        "moe_shared_expert_intermediate_size": (
            model.moe_shared_expert_intermediate_size or model.moe_intermediate_size
        ),
        "n_group": model.n_group,
        "topk_group": model.topk_group,
        "rope_theta": model.rope_theta,
        "rotary_dim": model.rotated_dim,
        "partial_rotary_factor": _partial_rotary_factor(model.rotated_dim, model.head_dim),
        "rope_scaling": _write_rope_scaling(model.rope_scaling),
        "rope_parameters": _write_rope_parameters(model),
        "eos_token_id": list(eos) if isinstance(eos := model.eos_token_id, tuple) else eos,
        "torch_dtype": model.torch_dtype,
        "router_dtype": "fp32",
        "use_cache": True,
        **{key: allowed[-1] for key, allowed in _FIXED.items() if key != "norm_head"},
    }


def _read(config: Any, where: str) -> ModelConfig:
    if not isinstance(config, Mapping):
        raise ConfigError(f"a model's configuration must be an object, got {shown(config)}")
    config = _section(config, "llm_config") or config
    _check_architecture(config)
    _check_types(config)
    for key, allowed in _FIXED.items():
        if key in config and config[key] is not None and config[key] not in allowed:
            raise ConfigError(f"{key} = {shown(config[key])} is another network; Ling 2.0 has {allowed[0]!r}")
    # null means the default, but for the padding id: there it means that there is none.
    fields = {k: config[k] for k in _PLAIN if k in config and (config[k] is not None or k == "pad_token_id")}
    fields |= _attention_fields(config)
    fields |= _expert_fields(config)
    fields |= _rope_fields(config, fields["head_dim"])
    fields |= _context_under_yarn(config, fields["rope_scaling"], where)
    eos = config.get("eos_token_id", _default("eos_token_id"))
    fields["eos_token_id"] = tuple(eos) if isinstance(eos, list) else eos
    fields["torch_dtype"] = _dtype(config)
    ignored = sorted(set(config) - set(_PLAIN) - set(_FIXED) - _SILENT - _RESOLVED)
    if ignored:
        told = [_quoted(key) for key in ignored[:_MOST_KEYS]]
        told += [f"{len(ignored) - _MOST_KEYS} more"] if len(ignored) > _MOST_KEYS else []
        logger.warning("%s: ignoring keys without meaning for Ling 2.0: %s", where, ", ".join(told))
    return ModelConfig(**fields)


def _quoted(name: object) -> str:
    """Return a name for a message: as it is, unless it would break the line or fill the screen."""
    return name if isinstance(name, str) and name.isprintable() and len(name) <= _LONG_NAME else shown(name)


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the object under `key`; an empty one if the key is missing or null."""
    section = config.get(key)
    if section is not None and not isinstance(section, Mapping):
        raise ConfigError(f"{key} must be an object, got {shown(section)}")
    return section or {}


def _check_architecture(config: Mapping[str, Any]) -> None:
    names = config.get("architectures") or []
    if not isinstance(names, list):
        raise ConfigError(f"architectures must be a list, got {shown(names)}")
    if names and ARCHITECTURE not in names:
        told = ", ".join(_quoted(name) for name in names[:_MOST_KEYS])
        raise ConfigError(f"architecture {told} is not {ARCHITECTURE}")
    if not names and config.get("model_type") not in (MODEL_TYPE, "bailing_moe_v2"):
        raise ConfigError(f"neither architectures nor model_type says that this is {ARCHITECTURE}")


def _check_types(config: Mapping[str, Any]) -> None:
    """Refuse a value that its field could not hold, before anything is computed from it; null is resolved later."""
    hints = {**declared_types(ModelConfig), "partial_rotary_factor": float}
    for key in (*_PLAIN, *_RESOLVED - _RESHAPED):
        if config.get(key) is not None:
            check_value(key, config[key], hints[key])


def _default(key: str) -> Any:
    return ModelConfig.__dataclass_fields__[key].default


def _given(config: Mapping[str, Any], key: str) -> Any:
    """Return the value under `key`, the default if it is missing or null."""
    value = config.get(key)
    return _default(key) if value is None else value


def _attention_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    heads = config.get("num_attention_heads") or _default("num_attention_heads")
    hidden = config.get("hidden_size") or _default("hidden_size")
    # A missing head_dim is the class default, a null one is hidden / heads: the published class does so.
    head_dim = config.get("head_dim", _default("head_dim")) or hidden // heads
    kv_heads = config.get("num_key_value_heads", _default("num_key_value_heads")) or heads
    return {"head_dim": head_dim, "num_key_value_heads": kv_heads}


def _expert_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    # null and 0 both mean "none" for shared experts and groups; only a missing key means the default.
    return {key: config.get(key, _default(key)) or 0 for key in ("num_shared_experts", "n_group", "topk_group")}


def _rope_fields(config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """Resolve rotary width, base and scaling from either generation of spellings."""
    nested = _section(config, "rope_parameters")
    merged = {k: v for k, v in (*nested.items(), *config.items()) if v is not None}
    _check_types(merged)
    by_dim, by_factor = merged.get("rotary_dim") or None, merged.get("partial_rotary_factor")
    if by_factor is not None and not 0 < by_factor <= 1:
        raise ConfigError(f"partial_rotary_factor must lie between 0 and 1, got {by_factor}")
    from_factor = None if by_factor is None else int(head_dim * by_factor)
    if by_dim is not None and from_factor is not None and by_dim != from_factor:
        raise ConfigError(
            f"rotary_dim {by_dim} contradicts partial_rotary_factor {by_factor} "
            f"(of head_dim {head_dim}: {from_factor}); keep the right one"
        )
    return {
        "rope_theta": _given(merged, "rope_theta"),
        "rotary_dim": by_dim if by_dim is not None else from_factor,
        "rope_scaling": _read_rope_scaling(config),
    }


def _context_under_yarn(config: Mapping[str, Any], scaling: RopeScaling | None, where: str) -> dict[str, int]:
    """Return the raised context: YaRN as published is added without touching max_position_embeddings."""
    if scaling is None or scaling.original_max_position_embeddings is None:
        return {}
    stretched = int(scaling.factor * scaling.original_max_position_embeddings)
    if stretched <= _given(config, "max_position_embeddings"):
        return {}
    logger.info("%s: YaRN raises max_position_embeddings to %d", where, stretched)
    return {"max_position_embeddings": stretched}


def _partial_rotary_factor(rotated_dim: int, head_dim: int) -> float:
    """Return the factor from which `int(head_dim * factor)`, as engines compute it, gives `rotated_dim`."""
    factor = rotated_dim / head_dim
    return factor if int(head_dim * factor) == rotated_dim else math.nextafter(factor, 2.0)


def _read_rope_scaling(config: Mapping[str, Any]) -> RopeScaling | None:
    raw = _section(config, "rope_scaling") or _section(config, "rope_parameters")
    kind: Any = raw.get("rope_type") or raw.get("type") or "default"
    if (raw.get("type") or kind) != kind:
        raise ConfigError(f"rope_scaling.type {shown(raw['type'])} contradicts rope_type {shown(kind)}")
    if kind == "default":
        return None
    if kind not in ("linear", "yarn"):
        raise ConfigError(f"rope_scaling type {_quoted(kind)} is not supported; use linear or yarn")
    names = set(RopeScaling.__dataclass_fields__) - {"type"}
    unknown = set(raw) - names - {"type", "rope_type", "rope_theta", "partial_rotary_factor", "rotary_dim"}
    if unknown:
        raise ConfigError(f"unknown rope_scaling key {', '.join(_quoted(key) for key in sorted(unknown)[:_MOST_KEYS])}")
    # beta_fast/beta_slow: null and 0 mean "not given" in the published rotary code.
    given = {
        key: raw[key]
        for key in names & set(raw)
        if raw[key] is not None and not (key.startswith("beta") and raw[key] == 0)
    }
    if kind == "yarn" and "original_max_position_embeddings" not in given:
        given["original_max_position_embeddings"] = _given(config, "max_position_embeddings")
    if "factor" not in given:
        raise ConfigError(f"rope_scaling of type {kind} needs a factor")
    return RopeScaling(type=kind, **given)


def _write_rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    out: dict[str, Any] = {"type": scaling.type, "rope_type": scaling.type, "factor": scaling.factor}
    if scaling.type == "yarn":
        out |= {
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.truncate,
        }
        optional = ("attention_factor", "mscale", "mscale_all_dim")
        out |= {key: getattr(scaling, key) for key in optional if getattr(scaling, key) is not None}
    return out


def _write_rope_parameters(model: ModelConfig) -> dict[str, Any]:
    """Return the newer spelling of base, width and stretching, the only one that some readers know."""
    scaling = _write_rope_scaling(model.rope_scaling) or {"type": "default", "rope_type": "default"}
    factor = _partial_rotary_factor(model.rotated_dim, model.head_dim)
    return {**scaling, "rope_theta": model.rope_theta, "partial_rotary_factor": factor}


def _dtype(config: Mapping[str, Any]) -> str:
    given = (config[key] for key in ("torch_dtype", "dtype") if config.get(key) is not None)
    value = next(given, _default("torch_dtype"))
    name = _quoted(value.removeprefix("torch.") if isinstance(value, str) else value)
    if name not in ("float32", "bfloat16"):
        raise ConfigError(f"torch_dtype {name} is not supported; use bfloat16 or float32")
    return name
