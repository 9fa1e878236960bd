"""The mix of dialogues and books: exact shares, nothing held out, the same for the same seed and step."""

import pytest

from ling.config.recipe import load_recipe
from ling.data.books import BookTokens, split_books
from ling.data.dialogues import heldout_set
from ling.data.mix import Mix
from ling.errors import ConfigError
from ling.tokenizer import Tokenizer, render, train_bpe

TRAINING, HELD = split_books(1.0)
TOKENIZER = Tokenizer.from_backend(
    train_bpe([*TRAINING[::200], *(render(d.messages) for d in heldout_set("facts", 50))], 512)
)
BOOKS = BookTokens(TRAINING[::100], TOKENIZER)


def mix(*overrides: str) -> Mix:
    model = ["model.vocab_size=512", "model.max_position_embeddings=512", "train.tokens_per_step=2000"]
    return Mix(load_recipe(preset_name="tiny", overrides=[*model, *overrides]), BOOKS, TOKENIZER)


def test_documents_fit_the_step_and_stay_whole() -> None:
    for step in range(5):
        documents = mix().documents(step)
        lengths = [len(d.tokens) for d in documents]
        assert lengths == sorted(lengths)
        assert 1500 < sum(lengths) <= 2000
        assert max(lengths) <= 192


def test_books_have_their_share_of_tokens() -> None:
    documents = mix("data.dialogue_fraction=0.75").documents(0)
    assert sum(len(d.tokens) for d in documents if all(d.learnt)) == 500
    assert sum(len(d.tokens) for d in mix("data.dialogue_fraction=0").documents(0)) == 2000
    assert not any(all(d.learnt) for d in mix("data.dialogue_fraction=1").documents(0))


def test_a_step_is_a_function_of_seed_and_step() -> None:
    assert mix().documents(3) == mix().documents(3)
    assert mix().documents(3) != mix().documents(4)
    assert mix().documents(3) != mix("train.seed=1").documents(3)


def test_only_answers_are_learnt_in_dialogues() -> None:
    for document in mix("data.dialogue_fraction=1").documents(0):
        learnt = TOKENIZER.decode([t for t, m in zip(document.tokens, document.learnt, strict=True) if m])
        assert learnt.endswith("<|role_end|>")
        assert "<role>" not in learnt


def test_held_out_books_are_never_cut_from() -> None:
    assert not set(TRAINING) & set(HELD)
    assert 0.005 < len(HELD) / (len(HELD) + len(TRAINING)) < 0.02


@pytest.mark.parametrize("max_tokens", [1, 7, 192])
def test_pieces_stay_inside_a_document(max_tokens: int) -> None:
    import random

    starts = [0, *BOOKS.ends[:-1].tolist()]
    bodies = {tuple(BOOKS.tokens[a:b].tolist()) for a, b in zip(starts, BOOKS.ends.tolist(), strict=True)}
    for seed in range(20):
        piece = tuple(BOOKS.piece(random.Random(seed), max_tokens).tokens)
        assert 1 <= len(piece) <= max_tokens
        assert any(piece == body[i : i + len(piece)] for body in bodies for i in range(len(body)))


def test_a_limit_that_leaves_no_dialogue_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.max_document_tokens 16 leaves out"):
        mix("data.max_document_tokens=16").documents(0)


def test_some_dialogues_become_conversations() -> None:
    def answers(*overrides: str) -> list[int]:
        documents = mix("data.dialogue_fraction=1", "data.max_document_tokens=512", *overrides).documents(0)
        return [TOKENIZER.decode(d.tokens).count("<role>ASSISTANT</role>") for d in documents]

    assert max(answers("data.conversation_fraction=1")) > 2
    assert max(answers("data.conversation_fraction=0")) <= 2  # memory asks in two turns by itself
