"""Runs whose state lies on several ranks: begun on one layout, gone on with on another."""

from pathlib import Path

import pytest
import torch
from tests.parallel import run_tasks

from ling.testing.ranks import RankPool

TASKS = "tests.parallel.run_tasks"
ONE: tuple[int, dict[str, int]] = (1, {})
FSDP2_EP2 = (2, {"expert": 2})
FSDP4 = (4, {})
CP2_EP2 = (4, {"context": 2, "expert": 2})
FSDP2_TP2 = (4, {"tensor": 2})
PP2_EP2 = (4, {"pipeline": 2, "expert": 2})


@pytest.mark.parametrize("method", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_a_run_goes_on_in_other_layouts_with_the_same_state_and_the_same_losses(
    ranks: RankPool, tmp_path: Path, method: str
) -> None:
    alone = run_tasks.run(str(tmp_path / "alone"), *ONE, method)
    begun = str(tmp_path / "begun")
    losses = ranks.run(f"{TASKS}:run", 2, begun, *FSDP2_EP2, method, 2)[0]
    step, state, _ = ranks.run(f"{TASKS}:held", 2, begun, *FSDP2_EP2, method)[0]
    assert step == 2
    for size, layout in (ONE, FSDP4, CP2_EP2, FSDP2_TP2, PP2_EP2):
        found = [run_tasks.held(begun, size, layout, method)] if size == 1 else ranks.run(
            f"{TASKS}:held", size, begun, size, layout, method
        )  # fmt: skip
        assert {step for step, _, _ in found} == {2}
        assert {name for _, tensors, _ in found for name in tensors} == state.keys()
        for _, tensors, _ in found:  # those of its pipeline stage
            assert all(torch.equal(tensor, state[name]) for name, tensor in tensors.items()), (size, layout)
    losses += ranks.run(f"{TASKS}:run", 4, begun, *CP2_EP2, method, 4)[0]
    losses += ranks.run(f"{TASKS}:run", 4, begun, *PP2_EP2, method, 5)[0]
    losses += run_tasks.run(begun, *ONE, method)
    assert losses == pytest.approx(alone, rel=2e-5)


def test_a_run_in_stages_that_is_stopped_has_the_same_bits_and_is_read_by_one_process(
    ranks: RankPool, tmp_path: Path
) -> None:
    whole = ranks.run(f"{TASKS}:run", 4, str(tmp_path / "whole"), *PP2_EP2, "adamw")[0]
    cut = str(tmp_path / "cut")
    parts = ranks.run(f"{TASKS}:run", 4, cut, *PP2_EP2, "adamw", 2)[0]
    _, state, _ = run_tasks.held(cut, *ONE, "adamw")
    for _, tensors, _ in ranks.run(f"{TASKS}:held", 4, cut, *PP2_EP2, "adamw"):
        assert all(torch.equal(tensor, state[name]) for name, tensor in tensors.items())
    assert parts + ranks.run(f"{TASKS}:run", 4, cut, *PP2_EP2, "adamw")[0] == whole


def test_a_run_that_is_stopped_and_resumed_on_the_same_layout_has_the_same_bits(
    ranks: RankPool, tmp_path: Path
) -> None:
    whole = ranks.run(f"{TASKS}:run", 2, str(tmp_path / "whole"), *FSDP2_EP2, "adamw")[0]
    cut = str(tmp_path / "cut")
    parts = ranks.run(f"{TASKS}:run", 2, cut, *FSDP2_EP2, "adamw", 4)[0]
    parts += ranks.run(f"{TASKS}:run", 2, cut, *FSDP2_EP2, "adamw")[0]
    assert parts == whole
    assert (tmp_path / "whole/metrics.jsonl").read_text().count("\n") == run_tasks.STEPS
    assert (tmp_path / "cut/metrics.jsonl").read_text().count("\n") == run_tasks.STEPS


def test_two_ranks_hold_at_most_60_percent_each(ranks: RankPool, tmp_path: Path) -> None:
    directory = str(tmp_path / "run")
    ranks.run(f"{TASKS}:run", 2, directory, *FSDP2_EP2, "adamw", 3)
    sizes = [size for _, _, size in ranks.run(f"{TASKS}:held", 2, directory, *FSDP2_EP2, "adamw")]
    whole = run_tasks.held(directory, *ONE, "adamw")[2]
    assert max(sizes) <= 0.6 * whole, (sizes, whole)


def test_what_stops_the_first_rank_from_saving_is_told_to_all_and_nothing_is_left(
    ranks: RankPool, tmp_path: Path
) -> None:
    told = ranks.run(f"{TASKS}:save_where_the_tokenizer_cannot_be_written", 2, str(tmp_path / "run"))
    assert told[0] == told[1]
    assert "step_000000: No space left on device; nothing was left there" in told[0]
    assert not list((tmp_path / "run/checkpoints").iterdir())
