"""Weights in two bytes and moments in one on several ranks: the bits of one process, whoever holds them."""

from typing import Any

import pytest
from tests.parallel.parity import LAYOUTS

from ling.testing.ranks import RankPool

TASKS = "tests.parallel.small_state_tasks"
RUNS = "tests.parallel.run_tasks"
SMALL = {"lr": 1e-2, "weights": "bfloat16", "moments": "fp8", "weight_decay": 0.1}
MUON = SMALL | {"method": "muon"}
SLOW = [
    *((layout, SMALL) for layout in ("fsdp2", "hsdp2x2", "ep4", "hsdp2xep2", "cp2", "cp2xep2")),
    ("fsdp2xep2", MUON), ("fsdp2xep2", SMALL | {"moments": "dynamic8"}), ("ep2", SMALL | {"moments": "bfloat16"}),
    ("hsdp2xep2", SMALL | {"weights": "float32"}), ("fsdp2", SMALL | {"master_weights": True}),
    ("fsdp2", SMALL | {"moments": "float32"}), ("ep2", MUON | {"moments": "bfloat16"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        ("ep2", SMALL),
        pytest.param("fsdp2xep2", SMALL, marks=pytest.mark.slow),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
    ],
)
def test_the_same_gradients_give_every_rank_its_part_of_one_process_to_the_bit(
    ranks: RankPool, layout: str, changes: dict[str, Any]
) -> None:
    size, sizes = LAYOUTS[layout]
    copies = sizes.get("data_parallel_replicate", 1)
    found = ranks.run(f"{TASKS}:update_a_model", size, layout, changes)
    assert [different for different, _, _ in found] == [[]] * size
    held = sum(here for _, here, _ in found)
    assert held == copies * found[0][2], "codes and scales are not shared out"


@pytest.mark.parametrize(
    ("method", "moments"),
    [("adamw", "fp8"), ("muon", "fp8"), pytest.param("adamw", "dynamic8", marks=pytest.mark.slow)],
)
def test_uneven_shares_of_odd_sizes_have_the_bits_of_one_process(ranks: RankPool, method: str, moments: str) -> None:
    assert ranks.run(f"{TASKS}:update_uneven_shares", 2, method, moments) == [[], []]


def test_ranks_that_would_cut_through_blocks_are_refused_by_name(ranks: RankPool) -> None:
    first, second = ranks.run(f"{TASKS}:cut_through_blocks", 2)
    assert first == second
    assert first == (
        "optim.moments fp8 has a scale per 256 neighbours, so ranks share out model.word_embeddings.weight (130, 64) "
        "in multiples of 4 rows, but parts of 65 are asked for; use another number of ranks, or optim.moments=bfloat16"
    )


@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        ("ep2", {"lr": 1e-2}),
        pytest.param("hsdp2xep2", {"lr": 1e-2}, marks=pytest.mark.slow),
        pytest.param("hsdp2xep2", SMALL | {"weights": "float32"}, marks=pytest.mark.slow),
    ],
)
def test_clipping_by_tensor_counts_each_element_once(ranks: RankPool, layout: str, changes: dict[str, Any]) -> None:
    for different, error in ranks.run(f"{TASKS}:clip_by_tensor", LAYOUTS[layout][0], layout, changes):
        assert different == []
        assert error < 1e-4
