"""Tokenised samples as the trainer reads them: the n-th sequence of a run, whatever came before it."""

import functools
import hashlib

import numpy as np

from ling.data.documents import Document
from ling.errors import ConfigError, DataError
from ling.finetune.packing import Deal, Integers, deal, one_each, pack_lengths
from ling.finetune.store import Store


class ChatSequences:
    """Sequences of whole samples that never see each other (implements the trainer's `Sequences`).

    One epoch has `len(self)` sequences and each sample once; epochs follow each other, each in an order of its own.
    What `sequence` gives depends on nothing but the samples, the length, the packing and the seed.
    """

    def __init__(
        self, store: Store, samples: Integers, *, sequence_length: int, seed: int, packing: bool = True
    ) -> None:
        """Pack `samples`, indices into `store`.

        Raises DataError if there are none, ConfigError if one is longer than a sequence.
        """
        if not len(samples):
            raise DataError("no sample is left to learn from; finetune.heldout_percent may keep all of them back")
        lengths = store.lengths[samples]
        if (longest := int(lengths.max())) > sequence_length:
            where = store.where(int(samples[int(lengths.argmax())]))
            raise ConfigError(
                f"the sample at {where} has {longest:,} tokens and a sequence {sequence_length:,}; "
                "lower finetune.max_tokens or use longer sequences"
            )
        self.sequence_length = sequence_length
        self._store, self._samples, self._lengths, self._seed = store, samples, lengths, seed
        self._packing = pack_lengths(lengths, sequence_length) if packing else one_each(lengths)
        self._deal = functools.lru_cache(2)(self._deal_epoch)  # readers may be ahead of each other by an epoch

    def __len__(self) -> int:
        """Return the number of sequences of one epoch."""
        return len(self._packing)

    def sequence(self, index: int) -> list[Document]:
        """Return the samples of sequence `index`, counted from 0 over all epochs."""
        return [self._store.document(int(sample)) for sample in self.samples(index)]

    def samples(self, index: int) -> Integers:
        """Return which samples of the store lie in sequence `index`; `Store.where` tells their places."""
        epoch, turn = divmod(index, len(self))
        dealt = self._deal(epoch)
        sequence = int(dealt.order[turn])
        start, end = self._packing.starts[sequence : sequence + 2]
        return self._samples[dealt.sample_at[start:end]]

    @property
    def tokens_per_epoch(self) -> int:
        return int(self._lengths.sum())

    @property
    def padding_percent(self) -> float:
        """Share of the sequences' places that no token fills."""
        return 100 * (1 - self.tokens_per_epoch / (len(self) * self.sequence_length))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identify everything the order depends on; a resumed run compares it with the one it was started with."""
        told = f"{self._store.fingerprint}/{self.sequence_length}/{self._seed}/{len(self)}".encode()
        return hashlib.blake2b(told + np.ascontiguousarray(self._samples).tobytes(), digest_size=16).hexdigest()

    def _deal_epoch(self, epoch: int) -> Deal:
        return deal(self._packing, self._lengths, self._seed, epoch)
