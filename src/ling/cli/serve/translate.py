"""Flags to what the engine and the server take."""

import json
from pathlib import Path
from typing import Any, get_args

from ling.config.engine import MOST_DRAFTS, CacheDtype, EngineConfig
from ling.errors import ConfigError
from ling.server.settings import ServerSettings

_PARSERS = {
    "tool_call_parser": ("ling2", "hermes", "qwen25"),
    "reasoning_parser": ("ling2", "deepseek_r1", "deepseek-r1", "qwen3"),
}
_METHODS = {"mtp": "mtp", "nextn": "mtp", "ngram": "ngram", "none": "none"}


def check_formats(options: Any) -> None:
    """Refuse formats that the model does not write."""
    for name, known in _PARSERS.items():
        if (asked := getattr(options, name)) not in known:
            raise ConfigError(
                f"--{name.replace('_', '-')} {asked} is for other models; use {' or '.join(known)}, all the same here"
            )
    if options.chat_template is not None:
        raise ConfigError(
            "--chat-template is not taken: the model was trained on one chat format, which is built in and also "
            "decides how answers are read"
        )


def drafting(options: Any) -> dict[str, Any]:
    """Return who drafts and how many tokens, as fields of EngineConfig; {} where nothing was said."""
    if options.speculative_eagle_topk not in (None, 1):
        raise ConfigError("--speculative-eagle-topk must be 1: drafts are a chain, not a tree")
    if options.speculative_config is not None:
        if options.speculative_algorithm is not None:
            raise ConfigError("--speculative-config and --speculative-algorithm say the same; give one")
        return _from_config(json_object("--speculative-config", options.speculative_config))
    steps, drafts = options.speculative_num_steps, options.speculative_num_draft_tokens
    if options.speculative_algorithm is None:
        if steps is not None or drafts is not None:
            raise ConfigError("--speculative-num-steps and -num-draft-tokens need --speculative-algorithm")
        return {}
    method = {"NEXTN": "mtp", "NGRAM": "ngram"}.get(options.speculative_algorithm.upper())
    if method is None:
        raise ConfigError(f"--speculative-algorithm {options.speculative_algorithm} is not known; use NEXTN or NGRAM")
    if steps is not None and drafts is not None and drafts != steps + 1:
        raise ConfigError(f"--speculative-num-steps {steps} makes {steps + 1} draft tokens, not {drafts}")
    count = steps if steps is not None else None if drafts is None else drafts - 1
    if count is not None and not 0 <= count <= MOST_DRAFTS:
        name, given, most = (
            ("num-steps", steps, MOST_DRAFTS) if steps is not None else ("num-draft-tokens", drafts, MOST_DRAFTS + 1)
        )
        raise ConfigError(f"--speculative-{name} must lie between {most - MOST_DRAFTS} and {most}, got {given}")
    return {"drafting": method} | ({} if count is None else {"num_speculative_tokens": count})


def _from_config(tree: dict[str, Any]) -> dict[str, Any]:
    if unknown := tree.keys() - {"method", "num_speculative_tokens"}:
        raise ConfigError(
            f"--speculative-config: {sorted(unknown)[0]} is not known; use method and num_speculative_tokens"
        )
    method, count = tree.get("method"), tree.get("num_speculative_tokens")
    if method not in _METHODS:
        raise ConfigError(f"--speculative-config: method {method!r} is not known; use mtp, ngram or none")
    if count is not None and type(count) is not int:
        raise ConfigError(f"--speculative-config: num_speculative_tokens must be a whole number, got {count!r}")
    return {"drafting": _METHODS[method]} | ({} if count is None else {"num_speculative_tokens": count})


def engine_config(options: Any, *, kv_cache_gib: float | None = None) -> EngineConfig:
    """kv_cache_gib  what a share of a GPU's memory came to"""
    kinds = {name: name for name in get_args(CacheDtype)} | {"fp8_e4m3": "fp8", "bf16": "bfloat16"}
    if options.kv_cache_dtype not in kinds:
        *names, last = get_args(CacheDtype)
        raise ConfigError(f"--kv-cache-dtype {options.kv_cache_dtype} is not known; use {', '.join(names)} or {last}")
    gib = options.kv_cache_gib if options.kv_cache_gib is not None else kv_cache_gib
    return EngineConfig(
        max_model_len=options.max_model_len or 0,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_num_queued=options.max_num_queued_reqs,
        block_size=options.block_size,
        kv_cache_gib=gib or 0.0,
        kv_cache_dtype=kinds[options.kv_cache_dtype],
        enable_prefix_caching=options.enable_prefix_caching,
        head_shortlist=options.head_shortlist,
        batch_invariant=options.batch_invariant,
        seed=options.seed,
        **drafting(options),
    )


def server_settings(options: Any, *, name: str) -> ServerSettings:
    """name  what the model is called unless a flag says so"""
    if options.metrics_compat not in (None, "vllm"):
        raise ConfigError(f"--metrics-compat {options.metrics_compat} is not known; use vllm")
    return ServerSettings(
        served_names=tuple(options.served_model_name or (name,)),
        root=name,
        host=options.host,
        port=options.port,
        api_keys=(*(options.api_key or ()), *_keys_of(options.api_key_file)),
        allowed_origins=tuple(origins(options)),
        allowed_hosts=tuple(options.allowed_hosts or ()),
        request_seconds=options.request_timeout,
        shutdown_seconds=options.shutdown_timeout,
        vllm_metrics=options.metrics_compat == "vllm",
    )


def origins(options: Any) -> list[str]:
    """Return web origins given one by one, or as vLLM takes them, in a JSON list."""
    found: list[str] = []
    for text in options.allowed_origins or ():
        several = _json("--allowed-origins", text) if text.startswith("[") else [text]
        found += several
    for origin in found:
        if not isinstance(origin, str) or not (origin == "*" or origin.startswith(("http://", "https://"))):
            raise ConfigError(f"--allowed-origins {origin!r} is no origin, such as https://example.org, nor *")
    return found


def json_object(flag: str, text: str) -> dict[str, Any]:
    value = _json(flag, text)
    if not isinstance(value, dict):
        raise ConfigError(f"{flag} must be a JSON object, such as '{{\"key\": 1}}'")
    return value


def _json(flag: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{flag} is not JSON: {error}") from None


def _keys_of(file: str | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = Path(file).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not ASCII text"
        raise ConfigError(f"--api-key-file {file} cannot be read: {reason}") from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"--api-key-file {file} has no key in it")
    return keys
