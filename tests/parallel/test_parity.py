"""Every layout trains as one process does: losses, gradients, norms, expert counts, biases and weights."""

import functools
import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from tests.parallel.parity import CONTAINED, LAYOUTS, Trained, join_stages, one_measurement, train

from ling.testing.ranks import RankPool

TASK = "tests.parallel.parity:train_and_keep_stages"
RECOMPUTE = ("none", "selective", "full")
PIECES = (1, 2)
PACKED = (False, True)
MTP_DEPTHS = (0, 1, 2)
QUICK_LAYOUTS = [name for name in LAYOUTS if name not in CONTAINED]
PRODUCT = list(itertools.product(LAYOUTS, RECOMPUTE, PIECES, PACKED, MTP_DEPTHS))
LOSSES = {"rtol": 2e-6, "atol": 1e-6}
NORMS = {"rtol": 1e-6, "atol": 0.0}
GRADIENTS = {"rtol": 0.0, "atol": 1e-7}
"""Their global norm is above 1 before it is clipped to 0.5."""
WEIGHTS = {"rtol": 0.0, "atol": 1e-5}
"""After five updates of size 1e-2."""


COVERED = [(0, 3), *itertools.combinations(range(1, 5), 2)]
"""Columns whose pairs of values the quick choice holds all of: any two settings, and a layout packed or not."""


def covering(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Choose rows so that each covered pair that some row has, some chosen row has: greedily, the same every time.

    Of rows that cover as many, the one whose values were chosen least.
    """

    def pairs(row: tuple[Any, ...]) -> set[tuple[Any, ...]]:
        return {(i, row[i], j, row[j]) for i, j in COVERED}

    missing, chosen = set().union(*map(pairs, rows)), []
    times: Counter[tuple[int, Any]] = Counter()
    while missing:
        best = max(rows, key=lambda row: (len(pairs(row) & missing), -sum(times[place] for place in enumerate(row))))
        chosen.append(best)
        missing -= pairs(best)
        times.update(enumerate(best))
    return chosen


PAIRWISE = covering([row for row in PRODUCT if row[0] in QUICK_LAYOUTS])


def test_the_quick_choice_holds_every_layout_and_every_pair_of_settings() -> None:
    values = (QUICK_LAYOUTS, RECOMPUTE, PIECES, PACKED, MTP_DEPTHS)
    for i, j in COVERED:
        assert {(row[i], row[j]) for row in PAIRWISE} == set(itertools.product(values[i], values[j]))


@functools.cache
def one_process(packed: bool, mtp_depth: int) -> Trained:
    return train(None, packed=packed, mtp_depth=mtp_depth)


@pytest.mark.parametrize(("layout", "recompute", "pieces", "packed", "mtp_depth"), PAIRWISE)
def test_a_layout_trains_as_one_process(
    ranks: RankPool, layout: str, recompute: str, pieces: int, packed: bool, mtp_depth: int
) -> None:
    check(ranks, layout, recompute, pieces, packed, mtp_depth)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "recompute", "pieces", "packed", "mtp_depth"), [row for row in PRODUCT if row not in PAIRWISE]
)
def test_every_combination_trains_as_one_process(
    ranks: RankPool, layout: str, recompute: str, pieces: int, packed: bool, mtp_depth: int
) -> None:
    check(ranks, layout, recompute, pieces, packed, mtp_depth)


@pytest.mark.parametrize("layout", ["fsdp2xtp2"])
def test_tensor_ranks_share_out_biases_tied_heads_and_padding(ranks: RankPool, layout: str) -> None:
    changes = {
        "use_bias": True, "use_qkv_bias": True, "tie_word_embeddings": True, "pad_token_id": 127,
        "first_k_dense_replace": 2,
    }  # fmt: skip
    got = ranks.run(TASK, LAYOUTS[layout][0], layout, "none", 1, True, 1, changes)
    compare(join_stages(got), train(None, packed=True, changes=changes))


@pytest.mark.parametrize(
    ("layout", "pieces", "changes"),
    [
        ("pp4", 4, {"num_hidden_layers": 5}),
        ("pp4", 2, {"num_hidden_layers": 4, "tie_word_embeddings": True, "pad_token_id": 127}),
        ("pp2xtp2", 2, {"tie_word_embeddings": True, "pad_token_id": 127, "use_bias": True}),
    ],
)
def test_stages_share_out_deep_models_tied_heads_and_padding(
    ranks: RankPool, layout: str, pieces: int, changes: dict[str, Any]
) -> None:
    got = ranks.run(TASK, 4, layout, "none", pieces, True, 1, changes)
    compare(join_stages(got), train(None, packed=True, changes=changes))


@pytest.mark.parametrize("frozen", [["embeddings"], ["*.layers.0.*", "*.layers.1.*", "embeddings"], ["*.layers.2.*"]])
def test_stages_agree_on_what_is_frozen(ranks: RankPool, frozen: list[str]) -> None:
    """Also where one of them keeps all it has as it is."""
    got = ranks.run(TASK, 2, "pp2", "none", 2, True, 1, None, frozen)
    compare(join_stages(got), train(None, packed=True, frozen=frozen))


@pytest.mark.parametrize("layout", ["cp2xtp2", "hsdp2xcp2xep2", "pp2xtp2", "pp2xcp2"])
def test_a_layout_measures_what_one_process_does(ranks: RankPool, layout: str) -> None:
    for found in ranks.run("tests.parallel.parity:one_measurement", LAYOUTS[layout][0], layout):
        assert found == pytest.approx(one_measurement(None), rel=1e-5)


def check(ranks: RankPool, layout: str, recompute: str, pieces: int, packed: bool, mtp_depth: int) -> None:
    got = ranks.run(TASK, LAYOUTS[layout][0], layout, recompute, pieces, packed, mtp_depth)
    compare(join_stages(got), one_process(packed, mtp_depth))


def compare(got: Trained, wanted: Trained) -> None:
    close = functools.partial(torch.testing.assert_close, check_dtype=False)
    close(torch.tensor(got.losses), torch.tensor(wanted.losses), **LOSSES)
    close(torch.tensor(got.norms), torch.tensor(wanted.norms), **NORMS)
    assert [list(c) for c in got.counts] == [list(c) for c in wanted.counts]
    for mine, other in zip(got.counts, wanted.counts):
        assert all(torch.equal(mine[layer], other[layer]) for layer in other)
    assert got.gradients.keys() == wanted.gradients.keys()
    close(got.gradients, wanted.gradients, **GRADIENTS)
    assert got.weights.keys() == wanted.weights.keys()
    close(got.weights, wanted.weights, **WEIGHTS)
