"""What a call of all layers is told once: their weights, and the structs of kernels.h that point to them."""

import ctypes
from dataclasses import dataclass

from torch import Tensor

from ling.ops.attention import AttentionWeights, HeadShape
from ling.ops.cpu import attention, mlp, moe, paged_attention
from ling.ops.cpu import library as lib
from ling.ops.linear import Projection, Weight
from ling.ops.moe import MoeWeights
from ling.ops.paged_attention import BlockStore
from ling.ops.router import RouterRule


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer: `feed_forward` are gate, up and down of a dense one, or experts with their rule."""

    input_norm: Tensor
    attention: AttentionWeights
    heads: HeadShape
    store: BlockStore
    post_norm: Tensor
    feed_forward: tuple[Weight | Projection, ...] | tuple[MoeWeights, RouterRule]


@dataclass(frozen=True, slots=True)
class JoinWeights:
    """What an MTP layer begins with."""

    embedding_norm: Tensor
    hidden_norm: Tensor
    projection: Weight | Projection


class CLayer(ctypes.Structure):
    """`Layer` of kernels.h."""

    _fields_ = [
        ("input_norm", ctypes.c_void_p),
        ("post_norm", ctypes.c_void_p),
        ("heads", attention.CHeads),
        ("dense", lib.CMatrix),
        ("dense_bias", ctypes.c_void_p),
        ("cache", paged_attention.CPaged),
        ("moe", moe.CMoe),
        ("mlp", mlp.CMlp),
    ]


class CStack(ctypes.Structure):
    """`Stack` of kernels.h."""

    _fields_ = [
        ("embedding_norm", ctypes.c_void_p),
        ("hidden_norm", ctypes.c_void_p),
        ("join", lib.CMatrix),
        ("layers", ctypes.c_void_p),
        ("num_layers", ctypes.c_int64),
        ("H", ctypes.c_int64),
        ("final_norm", ctypes.c_void_p),
        ("eps", ctypes.c_double),
        ("embedding", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("V", "kind")),
        *((name, ctypes.c_void_p) for name in ("cos", "sin")),
        *((name, ctypes.c_int64) for name in ("positions", "rotated", "lag")),
    ]


class CStep(ctypes.Structure):
    """`Step` of kernels.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("hidden", "tokens", "tables", "spans")),
        *((name, ctypes.c_int64) for name in ("B", "T")),
    ]


class CDrafts(ctypes.Structure):
    """`Drafts` of kernels.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("head", "sketch", "temperatures", "keys")),
        *((name, ctypes.c_int64) for name in ("count", "most")),
        ("read_again", ctypes.c_void_p),
    ]


def describe_layer(layer: LayerWeights, H: int, rotated: int) -> CLayer:
    weights, heads = layer.attention, layer.heads
    rows = weights.dense.shape[0]  # type: ignore[union-attr]
    assert rows == H, (rows, H)
    routed, dense = moe.CMoe(), mlp.CMlp()
    if isinstance(layer.feed_forward[0], MoeWeights):
        routed = moe.describe(layer.feed_forward[0], H, layer.feed_forward[1]).contents
    else:
        dense = mlp.describe(*layer.feed_forward).contents
    return CLayer(
        layer.input_norm.data_ptr(),
        layer.post_norm.data_ptr(),
        attention.describe(weights, heads, H, rotated).contents,
        lib.CMatrix(*lib.fields(weights.dense, H)),  # type: ignore[arg-type]
        lib.address(weights.dense_bias),
        paged_attention.describe_store(layer.store, heads.A),
        routed,
        dense,
    )


def describe_join(join: JoinWeights, H: int) -> tuple[int, int, lib.CMatrix]:
    assert join.projection.shape == (H, 2 * H), (join.projection.shape, H)  # type: ignore[union-attr]
    matrix = lib.CMatrix(*lib.fields(join.projection, H))  # type: ignore[arg-type]
    return join.embedding_norm.data_ptr(), join.hidden_norm.data_ptr(), matrix
