"""Checks of FP8 checkpoints: codes, scales and what `quantization_config` says of them (spec: checkpoint.md 3)."""

from collections.abc import Iterator, Mapping
from typing import Any

from ling.checkpoint.doctor.evidence import CONFIG, Evidence
from ling.checkpoint.doctor.finding import Edit, Finding, error, listed, warning
from ling.checkpoint.names import SCALE_SUFFIX, published_pieces
from ling.checkpoint.quantization import not_converted, quantization_config
from ling.config import ModelConfig

_CODES = "F8_E4M3"


def declared(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """`quantization_config` is there exactly if FP8 tensors are, and describes 128x128 blocks."""
    told, where = seen.raw_config.get("quantization_config"), f"{CONFIG}: quantization_config"
    codes = [key for key, tensor in seen.stored.items() if tensor.dtype == _CODES]
    if told and not codes and seen.whole and seen.stored:
        yield error(
            where,
            "it promises FP8, but no tensor is: engines wait for scales that do not exist",
            "remove it",
            Edit(file=CONFIG, remove=("quantization_config",)),
        )
    elif codes and not told:
        scaled = all(key + SCALE_SUFFIX in seen.stored for key in codes)
        yield error(
            where,
            f"absent, but {len(codes)} tensors are FP8: engines take the codes for values",
            "write it",
            Edit(file=CONFIG, set={"quantization_config": quantization_config(seen.with_stored_mtp(model))})
            if scaled
            else None,
        )
    elif codes and told:
        yield from _blocks(told, where)


def scales(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """Each matrix of codes has its grid of float32 scales, and no grid is without codes."""
    if not seen.whole:
        return
    for keys, what, fix in _faults(seen, seen.with_stored_mtp(model)):
        if keys:
            yield error(listed(keys), f"{len(keys)} {what}", fix)


def kept_unquantized(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """`modules_to_not_convert` names what readers would otherwise wait for scales of, above all `eh_proj`."""
    told = seen.raw_config.get("quantization_config")
    if not isinstance(told, Mapping) or not any(t.dtype == _CODES for t in seen.stored.values()):
        return
    given = told.get("modules_to_not_convert") or told.get("ignored_layers") or []
    names = [str(name) for name in given] if isinstance(given, list) else []
    where = f"{CONFIG}: quantization_config.modules_to_not_convert"
    held = {key.removesuffix(".weight") for key in seen.stored if key.endswith("eh_proj.weight")}
    if any(not any(module.endswith(name) for name in names) for module in held):
        whole = {**told, "modules_to_not_convert": sorted({*names, *not_converted(model)})}
        yield warning(
            where,
            "it does not name eh_proj, which has no scales: SGLang and transformers then wait for some and "
            "draft with garbage",
            "name it",
            Edit(file=CONFIG, set={"quantization_config": whole}),
        )
    if "gate" in names or "mlp.gate" in names:
        yield warning(
            where,
            "gate also matches gate_proj in engines that look for parts of names",
            "remove it: routers are no Linear there",
        )
    pieces = published_pieces(seen.with_stored_mtp(model))
    plain = [p.key for p in pieces if p.quantized and p.key in seen.stored]
    plain = [key for key in plain if seen.stored[key].dtype != _CODES and not any(name in key for name in names)]
    if plain:
        yield warning(
            listed(plain),
            f"{len(plain)} matrices are not FP8 although engines take them to be",
            "convert again with --dtype float8, or name their modules in modules_to_not_convert",
        )


def _blocks(told: Any, where: str) -> Iterator[Finding]:
    method = told.get("quant_method") if isinstance(told, Mapping) else None
    block = told.get("weight_block_size") if isinstance(told, Mapping) else None
    if method != "fp8" or block != [128, 128]:
        yield error(
            where,
            f"quant_method {str(method)[:20]} with blocks {str(block)[:20]}; this family has fp8 with [128, 128]",
            "convert again with --dtype float8",
        )


def _faults(seen: Evidence, model: ModelConfig) -> Iterator[tuple[list[str], str, str]]:
    held = seen.stored
    quantized = {p.key: p for p in published_pieces(model) if p.quantized}
    coded = [key for key, tensor in held.items() if tensor.dtype == _CODES]
    grids = [key for key in held if key.endswith(SCALE_SUFFIX)]
    again = "convert again from a whole checkpoint"
    yield [k for k in coded if k + SCALE_SUFFIX not in held], "matrices of FP8 codes have no scales", again
    yield [k for k in grids if k.removesuffix(SCALE_SUFFIX) not in held], "grids of scales have no codes", "remove them"
    plain = [k for k in grids if held.get(k.removesuffix(SCALE_SUFFIX)) and k.removesuffix(SCALE_SUFFIX) not in coded]
    beside = "remove them if the values are scaled already, or " + again
    yield plain, "grids of scales stand beside tensors that are not FP8", beside
    pairs = [(k, quantized[k.removesuffix(SCALE_SUFFIX)]) for k in grids if k.removesuffix(SCALE_SUFFIX) in quantized]
    wrong = [k for k, piece in pairs if held[k].shape != piece.scale_shape]
    yield wrong, "grids of scales are not one number per 128x128 block", again
    yield [k for k, _ in pairs if held[k].dtype != "F32"], "grids of scales are not F32", again
    yield [k for k in coded if k not in quantized], "tensors are FP8 that every reader takes as values", again
