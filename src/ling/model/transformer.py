"""The whole network. `CausalLM` is what checkpoints hold: `model.*` and `lm_head`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ling.config import ModelConfig
from ling.model.batch import AttentionBatch
from ling.model.block import Block
from ling.model.linear import Linear
from ling.model.mtp import MtpBlock
from ling.model.norm import RMSNorm
from ling.ops.cross_entropy import CrossEntropy, linear_cross_entropy
from ling.ops.linear import Weight, linear
from ling.ops.precision import at_least_float32
from ling.ops.rope import Rope, rope_table
from ling.ops.router import Routing


class ModelOutput(NamedTuple):
    """What a forward pass gives; logits are left to the caller, who seldom wants all of them."""

    hidden: Tensor
    """(N, H) after the final norm: input of the head and of the first MTP layer."""
    mtp_hidden: list[Tensor]
    """Per MTP depth (N, H), input of the head; empty if MTP was skipped."""
    routings: dict[int, Routing]
    """By stored layer, for every sparse layer that ran."""


def _run(block: Callable[..., Any], *arguments: Any) -> Any:
    return block(*arguments)


class Transformer(nn.Module):
    """Embedding, L blocks and the MTP blocks behind them, final norm."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.config = model
        self.word_embeddings = nn.Embedding(model.vocab_size, model.hidden_size, padding_idx=model.pad_token_id)
        main = [Block(model, i) for i in range(model.num_hidden_layers)]
        mtp = [MtpBlock(model, i) for i in range(model.num_hidden_layers, model.num_stored_layers)]
        self.layers = nn.ModuleList([*main, *mtp])
        self.norm = RMSNorm(model.hidden_size, model.rms_norm_eps)
        self.before: Callable[[Tensor], Tensor] | None = None
        """Gives (N, H) for tokens (N,) where layers before these run elsewhere; None: the embedding does."""
        self.rotate: Callable[[Tensor, ModelConfig, torch.dtype], Rope] = rope_table
        """Gives the rotation of positions; replaced where they are looked up."""
        self.stream_dtype: torch.dtype | None = None
        """What the embedding's rows become; None: they stay as they are."""

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        batch: AttentionBatch,
        *,
        embeddings: Tensor | None = None,
        run: Callable[..., Any] = _run,
    ) -> ModelOutput:
        """Run all layers over a flat row of tokens, as `CausalLM.forward`.

        embeddings  (N, H) in place of those of `tokens`
        run         calls a block with its arguments; one that recomputes instead of keeping activations, say
        """
        x = (self.before or self.embed)(tokens) if embeddings is None else embeddings
        rope = self.rotate(positions, self.config, x.dtype)
        routings: dict[int, Routing] = {}
        for i, block in enumerate(self.layers[: self.config.num_hidden_layers]):
            x, routing = run(block, x, rope, batch)
            if routing is not None:
                routings[i] = routing
        hidden = self.norm(x)
        mtp_hidden: list[Tensor] = []
        for depth, ahead in enumerate(batch.mtp_ids if batch.mtp_ids is not None else ()):
            below = mtp_hidden[-1] if mtp_hidden else hidden
            layer = self.config.num_hidden_layers + depth
            predict = self.mtp_block(depth).predict
            out, routings[layer] = run(predict, self.embed(ahead), below, rope, batch)
            mtp_hidden.append(out)
        return ModelOutput(hidden, mtp_hidden, routings)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return (N, H) for tokens (N,)."""
        rows: Tensor = self.word_embeddings(tokens)
        return rows if self.stream_dtype is None else rows.to(self.stream_dtype)

    def mtp_block(self, depth: int) -> MtpBlock:
        """Return the MTP layer of `depth`, counted from 0."""
        block = self.layers[self.config.num_hidden_layers + depth]
        assert isinstance(block, MtpBlock)
        return block


class CausalLM(nn.Module):
    """A Ling 2.0 language model. Parameters are uninitialised until `init_weights` or a checkpoint fills them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Transformer(config)
        # A tied head is the embedding itself, not a second name for it: torch forgets such ties when it moves models.
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear(config.hidden_size, config.vocab_size)
        self.score: Callable[[Tensor, Tensor, Tensor], CrossEntropy] = linear_cross_entropy
        """Scores hidden states with the head's weight and labels; replaced where the vocabulary is shared out."""
        self.computes_in: torch.dtype | None = None
        """What activations are; None: what the weights are."""
        self.elsewhere: tuple[str, ...] = ()
        """Names of parameters and expert biases that other processes hold in place of this one."""

    @property
    def head_weight(self) -> Tensor:
        """(V, H) in values; a head that is kept quantised is unpacked for it."""
        if self.lm_head is None:
            return self.model.word_embeddings.weight
        # A stage of a pipeline that has no head has something else in its place, whose weight is empty.
        weight = self.lm_head.quantity() if isinstance(self.lm_head, Linear) else self.lm_head.weight
        return weight if isinstance(weight, Tensor) else weight.dequantize(torch.float32)

    def forward(
        self, tokens: Tensor, positions: Tensor, batch: AttentionBatch, *, run: Callable[..., Any] = _run
    ) -> ModelOutput:
        """Run all layers over a flat row of tokens.

        tokens     (N,)  int64
        positions  (N,)  int64, the rotation's angle per token that attention sees
        batch      attention, and the tokens ahead for MTP
        run        calls a block with its arguments, as in `Transformer.forward`
        """
        output: ModelOutput = self.model(tokens, positions, batch, run=run)
        return output

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the head's logits in float32: (..., H) -> (..., V)."""
        return at_least_float32(linear(hidden, self.head()))

    def head(self) -> Weight:
        """Return (V, H) as ops take it."""
        return self.head_weight if self.lm_head is None else self.lm_head.quantity()

    def draft(self, depth: int, ahead: Tensor, hidden: Tensor, positions: Tensor, batch: AttentionBatch) -> Tensor:
        """Run one MTP layer on its own, for speculation.

        ahead   (N,)  int64, the token after each slot's
        hidden  (N, H)  after the final norm, or what the depth before returned
        return  (N, H)  input of the head
        """
        rope = self.model.rotate(positions, self.config, hidden.dtype)
        embedding = self.model.embed(ahead)
        return self.model.mtp_block(depth).predict(embedding, hidden, rope, batch)[0]
