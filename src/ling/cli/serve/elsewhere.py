"""Serving by vLLM or SGLang: the checkpoint written as that program loads it, and its server in our place."""

import hashlib
import importlib.util
import json
import math
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ling.cli.serve.flags import all_flags
from ling.cli.serve.translate import drafting, origins
from ling.engine.early import packed_weights
from ling.errors import ConfigError

_PROGRAMS = {"vllm": "vLLM", "sglang": "SGLang"}

Say = Callable[[str], None]


def who_serves(options: Any) -> str:
    """Return ling, vllm or sglang. Raises ConfigError, in one line, where nobody here can."""
    asked = options.engine
    if asked not in ("auto", "ling", *_PROGRAMS):
        raise ConfigError(f"--engine {asked} is not known; use auto, ling, vllm or sglang")
    sizes = {"--tensor-parallel-size": options.tensor_parallel_size,
             "--pipeline-parallel-size": options.pipeline_parallel_size}  # fmt: skip
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name} must be at least 1, got {size}")
    split = [f"{name} {size}" for name, size in sizes.items() if size > 1]
    if asked == "ling" or (asked == "auto" and not split):
        if split:
            raise ConfigError(f"{split[0]}: ling's own engine serves on one device; use --engine vllm or sglang")
        return "ling"
    if asked in _PROGRAMS:
        if not is_installed(asked):
            raise ConfigError(f"--engine {asked}: {_PROGRAMS[asked]} is not installed here")
        return str(asked)
    for program in _PROGRAMS:
        if is_installed(program):
            return program
    raise ConfigError(
        f"{split[0]}: ling's own engine serves on one device, and neither vLLM nor SGLang, which take more, is "
        "installed here; leave it out, or install one of them"
    )


def is_installed(program: str) -> bool:
    return importlib.util.find_spec(program) is not None


def serve_elsewhere(program: str, options: Any, directory: Path, say: Say) -> NoReturn:
    """Write the checkpoint for `program` and become its server."""
    flags = translated(program, options)  # refuses before anything is written
    target = _target(options, directory, program)
    launch, notes = _write(program, options, directory, target)
    for note in notes:
        say(f"note: {note}")
    command = [*shlex.split(launch), *flags]
    say(f"{_PROGRAMS[program]} serves: {shlex.join(_hidden(command))}")
    environment = dict(os.environ)
    if options.batch_invariant and program == "vllm":
        environment["VLLM_BATCH_INVARIANT"] = "1"
    become(command, environment)


def become(command: list[str], environment: dict[str, str]) -> NoReturn:
    """Replace this process by `command`."""
    if command[0] == "python":
        command = [sys.executable, *command[1:]]
    beside = Path(sys.executable).parent / command[0]  # installed where we are, whatever PATH says
    os.execvpe(str(beside) if beside.is_file() else command[0], command, environment)


def translated(program: str, options: Any) -> list[str]:
    """Return the flags of `program` that say what `options` say. Raises ConfigError for one that it has not."""
    flags: list[str] = []
    for flag in all_flags():
        value = getattr(options, flag.name)
        if value == flag.default or flag.translated:
            continue
        theirs = flag.vllm if program == "vllm" else flag.sglang
        if theirs is None:
            raise ConfigError(f"{flag.spellings[0]} is for ling's own engine; {_PROGRAMS[program]} has no such flag")
        if flag.name == "shutdown_timeout":
            value = math.ceil(value)  # others take whole seconds
        flags += [theirs, str(value)]
    packed_weights("--quantization", options.quantization)
    if options.quantization not in (None, "fp8"):
        raise ConfigError(f"--quantization {options.quantization} is for ling's own engine; use fp8, or leave it out")
    return [*flags, *(_for_vllm(options) if program == "vllm" else _for_sglang(options))]


def _for_vllm(options: Any) -> list[str]:
    flags = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    if options.served_model_name:
        flags += ["--served-model-name", *options.served_model_name, "auto"]
    if options.api_key:
        flags += ["--api-key", *options.api_key]
    if allowed := origins(options):
        flags += ["--allowed-origins", json.dumps(allowed)]
    if options.kv_cache_dtype != "auto":
        flags += ["--kv-cache-dtype", "bfloat16" if options.kv_cache_dtype == "bf16" else options.kv_cache_dtype]
    if not options.enable_prefix_caching:
        flags.append("--no-enable-prefix-caching")
    if options.attention_backend:
        flags += ["--attention-backend", options.attention_backend]
    if options.enforce_eager or options.disable_cuda_graph:
        flags.append("--enforce-eager")
    drafts = drafting(options)
    if drafts.get("drafting") == "mtp":
        raise ConfigError("vLLM does not draft with this model's MTP layer; SGLang does, and so does ling's engine")
    if drafts.get("drafting") == "ngram":
        count = drafts.get("num_speculative_tokens", 3)
        tree = {"method": "ngram", "num_speculative_tokens": count, "prompt_lookup_max": 4}
        flags += ["--speculative-config", json.dumps(tree)]
    return flags


def _for_sglang(options: Any) -> list[str]:
    flags = ["--tool-call-parser", "qwen25"]
    for name in ("served_model_name", "api_key"):
        if values := getattr(options, name):
            if len(values) > 1:
                raise ConfigError(f"--{name.replace('_', '-')}: SGLang takes one")
            flags += [f"--{name.replace('_', '-')}", values[0]]
    if options.allowed_origins:
        raise ConfigError("--allowed-origins: SGLang allows every origin and cannot be told otherwise")
    if options.kv_cache_dtype != "auto":
        theirs = {"fp8": "fp8_e4m3", "fp8_e4m3": "fp8_e4m3", "bfloat16": "bf16", "bf16": "bf16"}
        if options.kv_cache_dtype not in theirs:
            raise ConfigError(f"--kv-cache-dtype {options.kv_cache_dtype}: SGLang knows auto, bfloat16 and fp8")
        flags += ["--kv-cache-dtype", theirs[options.kv_cache_dtype]]
    for given, flag in (
        (not options.enable_prefix_caching, "--disable-radix-cache"),
        (options.batch_invariant, "--enable-deterministic-inference"),
        (options.enable_metrics, "--enable-metrics"),
        (options.disable_cuda_graph or options.enforce_eager, "--disable-cuda-graph"),
    ):
        flags += [flag] * bool(given)
    if options.attention_backend:
        flags += ["--attention-backend", options.attention_backend]
    drafts = drafting(options)
    if drafts.get("drafting") in ("mtp", "ngram"):
        count = drafts.get("num_speculative_tokens", 3)
        flags += ["--speculative-algorithm", "NEXTN" if drafts["drafting"] == "mtp" else "NGRAM"]
        flags += ["--speculative-num-draft-tokens", str(count + 1)]
        if drafts["drafting"] == "mtp":
            flags += ["--speculative-num-steps", str(count), "--speculative-eagle-topk", "1"]
    return flags


def _target(options: Any, directory: Path, program: str) -> Path:
    if options.export_to is not None:
        return Path(options.export_to)
    where = directory.resolve()
    mark = hashlib.sha256(str(where).encode()).hexdigest()[:8]  # directories of the same name are not the same model
    return Path.home() / ".cache" / "ling" / "served" / f"{where.name}-{mark}-{program}"


def _write(program: str, options: Any, directory: Path, target: Path) -> tuple[str, list[str]]:
    """Write the checkpoint; return the line that starts the program, and what to know before."""
    from ling.checkpoint.pieces import open_pieces
    from ling.compat.handover import plan_handover, write_handover
    from ling.compat.serving import Serving

    serving = Serving(
        tensor_parallel_size=options.tensor_parallel_size, pipeline_parallel_size=options.pipeline_parallel_size,
        max_model_len=options.max_model_len,
    )  # fmt: skip
    plan = plan_handover(open_pieces(directory), program, str(target), serving=serving)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_handover(plan, target, overwrite=True)
    return plan.launch[0], plan.notes


def _hidden(command: list[str]) -> list[str]:
    """Return `command` as it may be shown: keys are not."""
    shown, in_keys = [], False
    for part in command:
        in_keys = part == "--api-key" or (in_keys and not part.startswith("--"))
        shown.append("KEY" if in_keys and part != "--api-key" else part)
    return shown
