"""The order of sequences: everything once per pass, in shares, from any number on."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ling.data.shuffle import Shuffle
from ling.data.token_file import TokenFile, write_tokens
from ling.data.token_sequences import TokenSequences
from ling.errors import ConfigError


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 100, 1000])
def test_a_shuffle_has_every_item_once_and_depends_on_its_key(count: int) -> None:
    orders = [[Shuffle(count, key)[i] for i in range(count)] for key in ("a", "b")]
    assert all(sorted(order) == list(range(count)) for order in orders)
    if count >= 16:
        assert orders[0] != orders[1] != list(range(count))


def test_a_shuffle_of_a_thousand_scatters_neighbours() -> None:
    order = np.array([Shuffle(1000, "key")[i] for i in range(1000)])
    assert abs(np.corrcoef(np.arange(1000), order)[0, 1]) < 0.1
    assert np.abs(np.diff(order)).mean() == pytest.approx(1000 / 3, rel=0.1)


def file_of(tmp_path: Path, name: str, tokens: int) -> TokenFile:
    with write_tokens(tmp_path, name, 2**20) as writer:
        for start in range(0, tokens, 7):
            writer.add(np.arange(start, min(start + 7, tokens)))
    return TokenFile(tmp_path / name)


def test_each_pass_takes_every_window_once_in_another_order(tmp_path: Path) -> None:
    sequences = TokenSequences([file_of(tmp_path, "a", 205)], None, sequence_length=10, seed=1)
    assert len(sequences) == 20
    passes = [[int(sequences.tokens(20 * e + i)[0][0]) for i in range(20)] for e in range(3)]
    assert all(sorted(order) == list(range(0, 200, 10)) for order in passes)
    assert passes[0] != passes[1] != passes[2]
    flat = [t for piece in sequences.tokens(13) for t in piece.tolist()]
    assert flat == list(range(flat[0], flat[0] + 10))


@pytest.mark.parametrize("weights", [[0.7, 0.3], [1.0, 1.0, 1.0], [0.5, 0.31, 0.19], [8, 1, 1, 0.01]])
def test_shares_hold_for_any_number_of_sequences(tmp_path: Path, weights: list[float]) -> None:
    files = [file_of(tmp_path, str(i), 100 + 30 * i) for i in range(len(weights))]
    sequences = TokenSequences(files, weights, sequence_length=10, seed=1)
    counts: Counter[int] = Counter()
    for number in range(500):
        file, before = sequences.source(number)
        assert before == counts[file]
        counts[file] += 1
        for j, weight in enumerate(weights):
            assert abs(counts[j] - (number + 1) * weight / sum(weights)) <= 1 + j / 2


def test_the_end_of_each_file_is_held_out(tmp_path: Path) -> None:
    sequences = TokenSequences([file_of(tmp_path, "a", 205)], None, sequence_length=10, seed=1, heldout_percent=6)
    assert sequences.heldout == [(0, 18), (0, 19)]
    assert sorted(int(sequences.tokens(i)[0][0]) for i in range(18)) == list(range(0, 180, 10))


def test_a_file_that_is_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a has 9 tokens, too few for a sequence of 10"):
        TokenSequences([file_of(tmp_path, "a", 9)], None, sequence_length=10, seed=1)


def test_a_fingerprint_knows_the_files_the_order_and_the_length(tmp_path: Path) -> None:
    a, b = file_of(tmp_path, "a", 100), file_of(tmp_path, "b", 120)

    def of(files: list[TokenFile], **more: object) -> str:
        return TokenSequences(files, None, **{"sequence_length": 10, "seed": 1, **more}).fingerprint  # type: ignore[arg-type]

    assert of([a, b]) == of([a, b])
    assert len({of([a, b]), of([b, a]), of([a]), of([a, b], seed=2), of([a, b], sequence_length=20)}) == 5
