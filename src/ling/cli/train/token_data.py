"""Token files as what a run reads."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ling.cli.train.data import heldout_loss, task_percents
from ling.config.recipe import Recipe
from ling.config.training import read_weighted
from ling.data.token_file import TokenFile
from ling.data.token_sequences import TokenSequences
from ling.errors import ConfigError, DataError
from ling.model import CausalLM
from ling.optim.batch_ramp import BatchRamp
from ling.tokenizer import Tokenizer
from ling.train.batch import TrainBatch, build_batch


class TokenData:
    """Sequences of token files (keys `data.files`, `data.packing`)."""

    def __init__(self, recipe: Recipe, tokenizer: Path | None) -> None:
        """Open the files; `tokenizer` is that of the run or of its checkpoint, None: the first file's."""
        data, train = recipe.data, recipe.train
        entries = [read_weighted(entry) for entry in data.files]
        files = [TokenFile(path) for path, _ in entries]
        given = tokenizer or next((f.tokenizer for f in files if f.tokenizer is not None), None)
        if given is None:
            raise ConfigError(
                f"{data.files[0]} has no tokenizer beside it; begin with a checkpoint that has one (run.start_from)"
            )
        self.tokenizer = Tokenizer.from_directory(given)
        for file in files:
            self._check(file, recipe)
        weights = [weight for _, weight in entries if weight is not None]
        self._recipe = recipe
        self._ramp = BatchRamp.of(recipe.optim.batch_ramp, train.global_batch_size, train.micro_batch_size)
        self.sequences = TokenSequences(
            files, weights or None, sequence_length=train.sequence_length, seed=train.seed,
            heldout_percent=data.heldout_percent,
        )  # fmt: skip
        self.fingerprint: str | None = f"{self.sequences.fingerprint}/{data.packing}"

    def adapt(self, recipe: Recipe) -> Recipe:
        return recipe

    def read_batches(self, step: int, rank: int = 0, ranks: int = 1) -> list[TrainBatch]:
        each = self._recipe.train.micro_batch_size
        starts = self._ramp.starts(step, each, rank, ranks)
        return [self._batch([self.sequences.tokens(i) for i in range(s, s + each)]) for s in starts]

    def measure(self, model: CausalLM) -> dict[str, float]:
        """Return nats per held-out token; over the bytes of their text, bits per byte; and what tasks say."""
        length = self.sequences.sequence_length
        count = max(1, self._recipe.run.evaluate_tokens // length)
        batches = [self._batch([self.sequences.window(*place)]) for place in self.sequences.heldout[:count]]
        loss = heldout_loss(model, batches)
        scored = [int(t) for batch in batches for t in batch.labels[batch.labels >= 0].tolist()]
        num_bytes = sum(len(self.tokenizer.token_bytes(t)) for t in scored if not self.tokenizer.is_special(t))
        bits = loss * len(scored) / max(1, num_bytes) / math.log(2)
        tasks = task_percents(model, self.tokenizer, self._recipe)
        return {"evaluation/loss": loss, "evaluation/bits_per_byte": bits, **tasks}

    def _batch(self, sequences: Sequence[Sequence[NDArray[np.integer]]]) -> TrainBatch:
        """Lay sequences side by side; the last token of each piece that is kept apart has nothing to predict."""
        lists = [[piece.tolist() for piece in sequence] for sequence in sequences]
        if self._recipe.data.packing == "stream":
            lists = [[[token for piece in pieces for token in piece]] for pieces in lists]
        documents = [piece for pieces in lists for piece in pieces]
        if (most := max(map(max, documents))) >= (vocab_size := self._recipe.model.vocab_size):
            raise DataError(
                f"{', '.join(self._recipe.data.files)} holds token {most}, beyond model.vocab_size {vocab_size}; "
                "it was made with another tokenizer"
            )
        depth = self._recipe.model.num_nextn_predict_layers
        return build_batch(documents, [[True] * len(d) for d in documents], depth)

    def _check(self, file: TokenFile, recipe: Recipe) -> None:
        """Refuse tokens that the run's tokenizer or model does not have."""
        beside = None if file.tokenizer is None else Tokenizer.from_directory(file.tokenizer)
        if beside is not None and beside.serialized != self.tokenizer.serialized:
            raise ConfigError(
                f"{file.path} was made with another tokenizer than the run's; prepare it again with the checkpoint's"
            )
        if self.tokenizer.vocab_size > recipe.model.vocab_size:
            raise ConfigError(
                f"the tokenizer has {self.tokenizer.vocab_size} tokens, model.vocab_size is {recipe.model.vocab_size}; "
                f"set model.vocab_size={self.tokenizer.vocab_size} or more"
            )
