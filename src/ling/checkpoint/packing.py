"""Which matrices of a model are packed, and how: one format for all, or one for each kind."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from ling.checkpoint.names import Piece
from ling.errors import ConfigError
from ling.model import CausalLM
from ling.model.linear import Linear
from ling.model.moe import Experts, Router
from ling.ops.packed import PackedFormat, check_format

KINDS = ("head", "attention", "experts", "dense")
"""The head; projections of attention; routed and shared experts; feed-forwards of dense layers, and MTP's joint."""

Weights = PackedFormat | Mapping[str, PackedFormat]
"""A format for every matrix, or for each of some kinds."""

MIXED: dict[str, PackedFormat] = {"head": "int8", "attention": "int4", "experts": "int4", "dense": "int4"}
"""The smallest mixture within 1 % perplexity of float32: docs/guides/cpu.md has the embedded model's on held-out
books. Most of what int4 alone loses is the head's."""


def pack(model: CausalLM, weights: Weights) -> None:
    """Make room for packed weights in place of values; activations become float32, the embedding stays as published.

    Routers become bfloat16 where the configuration says that the checkpoint is; who has their values fits them.
    Raises ConfigError for a kind or a format that is not known.
    """
    formats = formats_by_kind(weights)
    for name, module in matrices(model):
        if (format := formats.get(kind_of(name))) is not None:
            module.keep_packed(format)
    table = model.model.word_embeddings
    model.to(torch.float32)
    if model.lm_head is not None:
        table.to(getattr(torch, model.config.torch_dtype))
    model.model.stream_dtype = model.computes_in = torch.float32
    published = torch.bfloat16 if model.config.torch_dtype == "bfloat16" else torch.float32
    fit_routers(model, lambda _: published)


def fit_routers(model: CausalLM, dtype_of: Callable[[str], torch.dtype]) -> None:
    """Hold every router's weight in the dtype that is given for its name.

    A router is read whole for every token. In bfloat16 that is half as much, and where no value is rounded
    (`exact_dtype`) every product is the same to the bit.
    """
    for name, module in model.named_modules():
        if isinstance(module, Router):
            module.keep_as(dtype_of(f"{name}.weight"))


def exact_dtype(values: Tensor) -> torch.dtype:
    """Return bfloat16 where it holds all of `values` exactly, float32 otherwise."""
    if values.dtype == torch.bfloat16 or torch.equal(values.to(torch.bfloat16).to(values.dtype), values):
        return torch.bfloat16
    return torch.float32


def matrices(model: CausalLM) -> Iterator[tuple[str, Linear | Experts]]:
    """Yield every module that can hold packed weights, by name."""
    for name, module in model.named_modules():
        if isinstance(module, Linear | Experts):
            yield name, module


def kind_of(name: str) -> str:
    """Return the kind of a module by its published name."""
    if name == "lm_head":
        return "head"
    if ".attention." in name:
        return "attention"
    return "experts" if ".experts" in name or ".shared_experts." in name else "dense"


def packed_format(model: CausalLM, piece: Piece) -> PackedFormat | None:
    """Return the format of the weight that a piece is part of; None: it is held as values."""
    name, _, parameter = piece.parameter.rpartition(".")
    module = model.get_submodule(name)
    if not isinstance(module, Linear | Experts) or module.packed is None or parameter == "bias":
        return None
    return module.packed.format if isinstance(module, Linear) else module.packed[0].format


def formats_by_kind(weights: Weights) -> dict[str, PackedFormat]:
    """Return the format of each kind that is packed, in the order of `KINDS`. Raises ConfigError as `pack` does."""
    if isinstance(weights, str):
        return dict.fromkeys(KINDS, check_format(weights))
    if unknown := sorted(set(weights) - set(KINDS)):
        raise ConfigError(f"no weights are of kind {unknown[0]}; kinds are {', '.join(KINDS)}")
    return {kind: check_format(weights[kind]) for kind in KINDS if kind in weights}


def read_weights(text: str) -> Weights:
    """Read `int8`, `int4` or `mixed`, perhaps with other formats for some kinds behind it: `int4,head=int8`."""
    first, *others = text.split(",")
    if first != "mixed" and not others:
        return check_format(first)
    formats: dict[str, str] = {**(MIXED if first == "mixed" else dict.fromkeys(KINDS, first))}
    for other in others:
        kind, _, format = other.partition("=")
        if kind not in KINDS:
            raise ConfigError(f"{text}: {kind} is no kind of weights; write KIND=FORMAT with {', '.join(KINDS)}")
        formats[kind] = format
    return formats_by_kind(formats)  # type: ignore[arg-type]  # which checks them


def formats_told(weights: Weights) -> str:
    """Return `weights` in a few words: the most common format, and what differs."""
    formats = formats_by_kind(weights)
    common = max(formats.values(), key=list(formats.values()).count)
    return ", ".join([common, *(f"{kind} {format}" for kind, format in formats.items() if format != common)])
