"""Where the weights of a network lie: the units that are gathered, placed and updated together."""

from typing import Literal, NamedTuple

from ling.config import ModelConfig
from ling.scaling.layout import Layout, stage_layers
from ling.scaling.parameters import count_attention, count_parameters

Kind = Literal["embedding", "dense", "sparse", "mtp", "head"]


class Unit(NamedTuple):
    """Numbers of weights of one block, of the embedding, or of the head with the final norm."""

    kind: Kind
    split: int
    """Weights that tensor ranks share out."""
    whole: int
    """Norms, the router, the MTP projection: every tensor rank works with all of them."""
    experts: int

    def on_rank(self, layout: Layout) -> "Unit":
        """Return what one rank works with: tensor and expert axes applied, shards gathered."""
        return Unit(self.kind, self.split // layout.tensor, self.whole, self.experts // layout.expert)

    @property
    def total(self) -> int:
        return self.split + self.whole + self.experts

    def sharded(self, layout: Layout) -> float:
        """Return how many of `on_rank`'s weights a rank keeps when all are sharded."""
        parts = self.split / layout.weight_shards + self.whole / layout.token_ranks
        return parts + self.experts / layout.expert_shards


def embedding_unit(model: ModelConfig) -> Unit:
    return Unit("embedding", model.vocab_size * model.hidden_size, 0, 0)


def head_unit(model: ModelConfig) -> Unit:
    """Final norm, and the head unless it is the embedding."""
    tied = model.tie_word_embeddings
    return Unit("head", 0 if tied else model.vocab_size * model.hidden_size, model.hidden_size, 0)


def block_unit(model: ModelConfig, layer: int) -> Unit:
    """Return stored layer `layer`, MTP layers after the others."""
    H = model.hidden_size
    head_norms = 2 * model.head_dim if model.use_qk_norm else 0
    output_bias = H if model.use_bias else 0
    split = count_attention(model) - head_norms - output_bias
    whole = head_norms + output_bias + 2 * H
    if not model.is_moe(layer):
        return Unit("dense", split + 3 * H * model.intermediate_size, whole, 0)
    split += 3 * H * model.shared_expert_dim
    whole += model.num_experts * H
    experts = 3 * H * model.moe_intermediate_size * model.num_experts
    if layer < model.num_hidden_layers:
        return Unit("sparse", split, whole, experts)
    return Unit("mtp", split, whole + 3 * H + 2 * H * H, experts)


class Stage(NamedTuple):
    """What the ranks of one pipeline stage hold."""

    number: int
    """Counted from 0."""
    embedding: Unit | None
    """On the first stage, and as a copy on the last one for MTP."""
    blocks: tuple[Unit, ...]
    mtp: tuple[Unit, ...]
    head: Unit | None
    copied: bool
    """Whether the embedding is the last stage's copy."""

    @property
    def units(self) -> tuple[Unit, ...]:
        """In the order of forward."""
        first = () if self.embedding is None or self.copied else (self.embedding,)
        last = (self.embedding,) if self.embedding is not None and self.copied else ()
        return (*first, *self.blocks, *last, *self.mtp, *(() if self.head is None else (self.head,)))


def distinct_stages(stages: list[Stage]) -> list[Stage]:
    """Return the first of each kind of stage: later ones alike hold no more and take no longer."""
    first: dict[object, Stage] = {}
    for stage in stages:
        kinds = tuple(unit.kind for unit in stage.units)
        first.setdefault((kinds, stage.copied), stage)
    return list(first.values())


def split_into_stages(model: ModelConfig, layout: Layout) -> list[Stage]:
    """Cut the layers into equal runs, the first ones longer by a layer if need be; MTP and head end the last."""
    p, L = layout.pipeline, model.num_hidden_layers
    k = model.first_k_dense_replace
    dense, sparse, mtp = (block_unit(model, layer).on_rank(layout) for layer in (0, k, L))
    blocks = [*[dense] * k, *[sparse] * (L - k)]
    stages = []
    for s, run in enumerate(stage_layers(L, p)):
        last = s == p - 1
        ahead = (mtp,) * (model.num_nextn_predict_layers if last else 0)
        copied = last and p > 1 and (bool(ahead) or model.tie_word_embeddings)
        embedding = embedding_unit(model).on_rank(layout) if s == 0 or copied else None
        head = head_unit(model).on_rank(layout) if last else None
        stages.append(Stage(s, embedding, tuple(blocks[run.start : run.stop]), ahead, head, copied))
    assert sum(u.total for stage in stages for u in stage.blocks) > 0, stages
    if layout.gpus == 1:
        total = sum(unit.total for unit in stages[0].units)
        assert total == count_parameters(model).total_with_mtp, (total, count_parameters(model))
    return stages
