"""The pool that other tests rely on, and the exchanges between its ranks."""

import time

import pytest

from ling.testing.ranks import RankPool, RanksFailedError

TASKS = "tests.parallel.tasks"


@pytest.mark.parametrize("world_size", [4, 1, 2])
def test_a_task_runs_on_as_many_ranks_as_asked(ranks: RankPool, world_size: int) -> None:
    total = sum(range(world_size))
    assert ranks.run(f"{TASKS}:add_up_ranks", world_size) == [(r, world_size, total) for r in range(world_size)]


def test_a_failure_says_which_rank_and_why_and_the_pool_goes_on(ranks: RankPool) -> None:
    start = time.monotonic()
    with pytest.raises(RanksFailedError, match=r"rank 1 of 2:(.|\n)*ValueError: rank 1 has had enough"):
        ranks.run(f"{TASKS}:fail_on", 2, 1)
    assert time.monotonic() - start < 20
    assert ranks.run(f"{TASKS}:add_up_ranks", 2) == [(0, 2, 1), (1, 2, 1)]


def test_ranks_that_hang_are_killed_and_their_place_is_named(ranks: RankPool) -> None:
    with pytest.raises(RanksFailedError, match=r"gave no answer in 2 s(.|\n)*hang_on"):
        ranks.run(f"{TASKS}:hang_on", 2, 0, timeout_seconds=2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "int32"])
def test_rows_arrive_in_uneven_numbers_none_included_and_gradients_travel_back(ranks: RankPool, dtype: str) -> None:
    splits = [[1, 0, 2, 3], [0, 0, 0, 0], [2, 2, 0, 1], [0, 5, 0, 0]]
    for me, (got, gradient, received) in enumerate(ranks.run(f"{TASKS}:send_rows", 4, dtype, splits)):
        assert received == [splits[other][me] for other in range(4)]
        assert got == [other + 1 for other in range(4) for _ in range(splits[other][me])]
        if dtype == "float32":
            assert gradient == [other + 1 for other in range(4) for _ in range(splits[me][other])]


def test_several_tensors_are_summed_in_one_exchange(ranks: RankPool) -> None:
    assert ranks.run(f"{TASKS}:sum_two", 4) == [[[6, 4], 12]] * 4
