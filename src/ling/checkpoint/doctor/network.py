"""Checks of keys that make other programs build another network, and of the experts' router (spec: model.md 2)."""

import json
from collections.abc import Iterator
from typing import Any

from ling.checkpoint.doctor.evidence import CONFIG, Evidence
from ling.checkpoint.doctor.finding import Edit, Finding, Widen, error, listed, note, warning
from ling.checkpoint.names import published_pieces
from ling.config import ModelConfig, write_published

_WHERE_MISSING = {
    "score_function": "vLLM takes softmax, the network has sigmoid",
    "norm_topk_prob": "vLLM and SGLang cannot build the router",
    "use_rmsnorm": "vLLM normalises queries and keys with LayerNorm",
    "use_qk_norm": "vLLM and SGLang leave out the norm of queries and keys",
    "moe_router_enable_expert_bias": "vLLM and SGLang leave out the expert bias",
    "num_shared_experts": "SGLang fails to compare null with 0",
    "moe_shared_expert_intermediate_size": "vLLM and SGLang have no width for the shared expert",
    "num_key_value_heads": "readers fill in another number of heads each",
    "head_dim": "readers derive it in two ways",
    "vocab_size": "readers fill in their own",
    "first_k_dense_replace": "readers fill in their own",
}
"""Keys that are missing or null, and who then does what."""
_OF_EXPERTS = {
    "score_function",
    "norm_topk_prob",
    "moe_router_enable_expert_bias",
    "num_shared_experts",
    "moe_shared_expert_intermediate_size",
}


def said_in_full(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """Every key that some reader fills in otherwise is there."""
    complete = write_published(model)
    for key, consequence in _WHERE_MISSING.items():
        if seen.config.get(key) is None and (model.num_moe_layers or key not in _OF_EXPERTS):
            value = _stored_shared_experts(seen, model) if key == "num_shared_experts" else complete[key]
            yield warning(f"{CONFIG}: {key}", f"missing: {consequence}", f"write {value!r}", _set(**{key: value}))
    if seen.config.get("routed_scaling_factor") is None and model.num_moe_layers:
        yield warning(
            f"{CONFIG}: routed_scaling_factor",
            "missing: every reader takes 1.0, the Ling 2.0 models have 2.5",
            "write the factor the model was trained with",
        )


def router_precision(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """`router_dtype` is fp32; the published converter writes the word None where it was unset."""
    told = seen.config.get("router_dtype")
    if model.num_moe_layers and told != "fp32":
        shown = "missing" if told is None else f"{str(told)[:20]!r}"
        yield warning(
            f"{CONFIG}: router_dtype",
            f"{shown}: vLLM and SGLang then hold the router in bfloat16 and choose other experts",
            "write fp32",
            _set(router_dtype="fp32"),
        )


def expert_groups(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """No groups is spelt as one group of all experts, which every reader computes alike."""
    if not model.num_moe_layers:
        return
    for key in ("n_group", "topk_group"):
        if key not in seen.config:
            value = getattr(model, key)
            yield warning(
                f"{CONFIG}: {key}", "missing: readers fill in their own", f"write {value}", _set(**{key: value})
            )
    if model.n_group == 0:
        yield warning(
            f"{CONFIG}: n_group, topk_group",
            f"{json.dumps(seen.config.get('n_group'))} means no groups to the converter; "
            "other readers fail on null, on 0, or on both",
            "write 1 and 1: one group of all experts is the same choice",
            _set(n_group=1, topk_group=1),
        )


def expert_bias_precision(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """Expert biases are float32: rounded ones choose other experts."""
    biases = [p.key for p in published_pieces(model) if p.float32 and p.key in seen.stored]
    if rounded := [key for key in biases if seen.stored[key].dtype in ("BF16", "F16")]:
        yield warning(
            listed(rounded, 1),
            f"{len(rounded)} expert biases are {seen.stored[rounded[0]].dtype}: rounded, they choose other experts",
            "convert again from the training checkpoint; --fix makes them F32, which readers expect, "
            "but what rounding took is lost",
            Widen(tuple(rounded)),
        )


def dtype_of_weights(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """`torch_dtype` says what the matrices are stored in."""
    held = {seen.stored[p.key].dtype for p in published_pieces(model) if p.key in seen.stored and not p.float32}
    floats = held & {"BF16", "F16", "F32"}
    spelt = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    if floats and model.torch_dtype not in {spelt[name] for name in floats}:
        (first, *others) = sorted(floats)
        clear = not others and first != "F16"
        yield warning(
            f"{CONFIG}: torch_dtype",
            f"{model.torch_dtype}, but the tensors are {' and '.join(sorted(floats))}: readers cast",
            f"write {spelt[first]}" if clear else "convert to one dtype",
            _set(torch_dtype=spelt[first]) if clear else None,
        )
    both = seen.config.get("torch_dtype"), seen.config.get("dtype")
    if None not in both and str(both[0]) != str(both[1]):
        yield error(f"{CONFIG}: torch_dtype, dtype", f"{both[0]} contradicts {both[1]}", "remove the wrong one")


def mtp_in_engines(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """What is known of engines and MTP layers that are all there."""
    if not model.num_nextn_predict_layers or seen.is_mtp_alone:
        return
    if model.num_nextn_predict_layers > 1:
        yield warning(
            f"{CONFIG}: num_nextn_predict_layers",
            f"{model.num_nextn_predict_layers}: SGLang drafts with exactly one",
            "for SGLang, convert with --mtp drop",
        )
    yield note(
        f"{CONFIG}: num_nextn_predict_layers",
        "vLLM 0.33 refuses the MTP layer of this family; SGLang reads it",
        "for vLLM, ling convert --mtp drop",
    )


def _stored_shared_experts(seen: Evidence, model: ModelConfig) -> int:
    """Return how many shared experts wide the stored ones are; 0 if there are none."""
    suffix = ".mlp.shared_experts.gate_proj.weight"
    rows = next((t.shape[0] for key, t in seen.stored.items() if key.endswith(suffix) and t.shape), 0)
    return rows // max(1, model.moe_shared_expert_intermediate_size or model.moe_intermediate_size)


def _set(**values: Any) -> Edit:
    return Edit(file=CONFIG, set=values)
