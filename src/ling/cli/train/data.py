"""What a run reads: the books and dialogues in the package, or conversations to fine-tune on."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

from ling.checkpoint.pieces import TOKENIZER_DIRECTORY, PieceSource
from ling.cli.demo.prepare import Prepared, prepare
from ling.cli.progress import progress_bar
from ling.config.recipe import Recipe
from ling.data.dialogues import TASKS, Dialogue
from ling.data.documents import Document
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams
from ling.errors import ConfigError
from ling.eval.bits_per_byte import bits_per_byte
from ling.eval.tasks import run_task
from ling.finetune.prepare import prepare as prepare_conversations
from ling.finetune.sequences import ChatSequences
from ling.model import CausalLM, PackedBatch
from ling.optim.batch_ramp import BatchRamp
from ling.tokenizer import Tokenizer
from ling.train.batch import TrainBatch, build_batch
from ling.train.loss import LossCounts, add_losses, compute_loss

_ANSWER_TOKENS = 64


class Data(Protocol):
    """What is learnt, and what is kept from training to be measured."""

    tokenizer: Tokenizer
    fingerprint: str | None
    """Of everything that decides what a step reads; None: the recipe alone does."""

    def adapt(self, recipe: Recipe) -> Recipe:
        """Return the recipe with what only the data can say."""
        ...

    def read_batches(self, step: int, rank: int = 0, ranks: int = 1) -> list[TrainBatch]:
        """Return the microbatches of a step, counted from 0, that one of `ranks` data-parallel ranks works on.

        Those of all ranks together are the step's, whatever the number of ranks.
        """
        ...

    def measure(self, model: CausalLM) -> dict[str, float]:
        """Return what held-out data says of a model, under stable names."""
        ...


class BuiltIn:
    """Books and generated dialogues (section `data`)."""

    fingerprint: str | None = None

    def __init__(self, recipe: Recipe, prepared: Prepared) -> None:
        self.tokenizer = prepared.tokenizer
        self._recipe = recipe
        self._prepared = prepared
        self._heldout = self._text()

    def adapt(self, recipe: Recipe) -> Recipe:
        return recipe

    def read_batches(self, step: int, rank: int = 0, ranks: int = 1) -> list[TrainBatch]:
        return self._prepared.read_batches(step, rank, ranks)

    def measure(self, model: CausalLM) -> dict[str, float]:
        score, window = engine_of(model, self.tokenizer).negative_log_likelihoods, self._recipe.data.max_document_tokens
        bits = bits_per_byte(score, self.tokenizer, self._heldout, window=window, stride=window // 2)
        return {"evaluation/bits_per_byte": bits.value, **task_percents(model, self.tokenizer, self._recipe)}

    def _text(self) -> list[str]:
        """Return held-out documents of about `evaluate_tokens` tokens."""
        texts, tokens = [], 0
        for text in self._prepared.heldout_books:
            if tokens >= self._recipe.run.evaluate_tokens:
                break
            texts.append(text)
            tokens += len(self.tokenizer.encode(text, special=False))
        return texts


class Conversations:
    """Messages whose answers are learnt (section `finetune`)."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._recipe, train = recipe, recipe.train
        self._ramp = BatchRamp.of(recipe.optim.batch_ramp, train.global_batch_size, train.micro_batch_size)
        with progress_bar("reading conversations", in_bytes=True) as progress:
            self.prepared = prepare_conversations(
                recipe.finetune, tokenizer, sequence_length=train.sequence_length, progress=progress
            )
        self.sequences = ChatSequences(
            self.prepared.store, self.prepared.training, sequence_length=train.sequence_length, seed=train.seed,
            packing=recipe.finetune.packing,
        )  # fmt: skip
        self.fingerprint: str | None = self.sequences.fingerprint

    def adapt(self, recipe: Recipe) -> Recipe:
        """Set the number of steps to that of the epochs, and average none of them."""
        steps = self._ramp.steps_for(math.ceil(recipe.finetune.epochs * len(self.sequences)))
        last = min(recipe.train.average_last, steps // recipe.train.average_every)
        return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, steps=steps, average_last=last))

    def read_batches(self, step: int, rank: int = 0, ranks: int = 1) -> list[TrainBatch]:
        each = self._recipe.train.micro_batch_size
        starts = self._ramp.starts(step, each, rank, ranks)
        return [self._batch([d for i in range(s, s + each) for d in self.sequences.sequence(i)]) for s in starts]

    def measure(self, model: CausalLM) -> dict[str, float]:
        found = task_percents(model, self.tokenizer, self._recipe)
        documents, tokens = [], 0
        for sample in self.prepared.heldout.tolist():
            if tokens >= self._recipe.run.evaluate_tokens:
                break
            documents.append(self.prepared.store.document(sample))
            tokens += len(documents[-1].tokens)
        if not documents:
            return found
        return {"evaluation/loss": heldout_loss(model, [self._batch([document]) for document in documents]), **found}

    def _batch(self, documents: list[Document]) -> TrainBatch:
        depth = self._recipe.model.num_nextn_predict_layers
        return build_batch([d.tokens for d in documents], [d.learnt for d in documents], depth)


def open_data(recipe: Recipe, kept: Path | None, source: PieceSource | None) -> Data:
    """Open the data of a recipe.

    kept    tokenizer that an earlier part of the run left
    source  checkpoint that the run begins with; its tokenizer is used, without one a new one is trained
    """
    files = [] if source is None else [f for f in source.tokenizer_files() if f.name == "tokenizer.json"]
    given = kept if kept is not None and kept.is_dir() else files[0].parent if files else None
    if recipe.data.files and not recipe.finetune.data:
        from ling.cli.train.token_data import TokenData

        return TokenData(recipe, given)
    if not recipe.finetune.data:
        if recipe.optim.batch_ramp.start:
            raise ConfigError("optim.batch_ramp counts sequences, and the data in the package has none; leave it out")
        return BuiltIn(recipe, prepare(recipe, given))
    if given is None:
        raise ConfigError("fine-tuning begins with a model that has a tokenizer; name one with run.start_from")
    return Conversations(recipe, Tokenizer.from_directory(given))


@torch.no_grad()
def heldout_loss(model: CausalLM, batches: Sequence[TrainBatch]) -> float:
    """Return the nats per learnt token over all batches."""
    device = model.model.norm.weight.device
    counts, parts = LossCounts.of(batches), []
    for batch in (batch.to(device) for batch in batches):
        output = model(batch.tokens, batch.positions, PackedBatch(batch.attention.rows))
        parts.append(compute_loss(model, output, batch.labels, batch.mtp_labels, counts=counts))
    return float(add_losses(parts).main)


def engine_of(model: CausalLM, tokenizer: Tokenizer) -> LLM:
    """Return an engine over a model in training, which takes the same steps on every rank.

    How much is drafted follows a rank's own clock, and layers in shards wait for all: several ranks draft nothing.
    """
    several = dist.is_initialized() and dist.get_world_size() > 1
    return LLM(model, tokenizer, drafting="none" if several else "auto")


def task_percents(model: CausalLM, tokenizer: Tokenizer, recipe: Recipe) -> dict[str, float]:
    """Return the share of right answers to held-out prompts of the generated tasks; {} if none are asked for."""
    if not recipe.run.evaluate_prompts:
        return {}
    llm = engine_of(model, tokenizer)

    def answer(dialogues: Sequence[Dialogue]) -> list[str]:
        params = SamplingParams(temperature=0, max_tokens=_ANSWER_TOKENS)
        answers = llm.chat([d.prompt for d in dialogues], params, tools=[d.tools for d in dialogues])
        return [answer.outputs[0].text for answer in answers]

    results = [run_task(answer, task, recipe.run.evaluate_prompts, level=recipe.data.dialogue_level) for task in TASKS]
    correct, total = sum(r.correct for r in results), sum(r.total for r in results)
    each = {f"evaluation/tasks/{result.task}_percent": result.correct_percent for result in results}
    return {**each, "evaluation/tasks_percent": 100 * correct / total}


def keep_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write the tokenizer for later parts of the run, unless it lies there."""
    if not directory.is_dir():
        tokenizer.save(directory)


def add_tokenizer(tokenizer: Tokenizer, checkpoint: Path) -> None:
    tokenizer.save(checkpoint / TOKENIZER_DIRECTORY)
