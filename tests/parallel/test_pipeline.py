"""The order of the passes of a pipeline, and which layers a stage has."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ling.parallel.pipeline import Stage
from ling.scaling.layout import Layout, stage_layers


class OneOf(Stage):
    """A stage without neighbours: its order alone."""

    def __init__(self, index: int, count: int) -> None:
        super().__init__(Layout(), 0, torch.device("cpu"))
        self.index, self.count = index, count


def order(index: int, count: int, microbatches: int) -> str:
    return " ".join(f"{'FB'[p.is_backward]}{p.microbatch}" for p in OneOf(index, count).passes(microbatches))


def test_one_forward_one_backward() -> None:
    assert order(0, 3, 4) == "F0 F1 F2 B0 F3 B1 B2 B3"
    assert order(1, 3, 4) == "F0 F1 B0 F2 B1 F3 B2 B3"
    assert order(2, 3, 4) == "F0 B0 F1 B1 F2 B2 F3 B3"
    assert order(0, 1, 2) == "F0 B0 F1 B1"
    assert order(0, 4, 1) == "F0 B0"


@given(st.integers(1, 8), st.integers(1, 20), st.data())
def test_every_microbatch_goes_forth_and_back_in_order_and_few_are_in_flight(
    count: int, microbatches: int, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, count - 1))
    passes = list(OneOf(index, count).passes(microbatches))
    for is_backward in (False, True):
        assert [p.microbatch for p in passes if p.is_backward == is_backward] == list(range(microbatches))
    in_flight = 0
    for p in passes:
        in_flight += -1 if p.is_backward else 1
        assert 0 <= in_flight <= count - index


@given(st.integers(1, 8), st.integers(1, 20))
def test_neighbours_never_wait_for_each_other(count: int, microbatches: int) -> None:
    """Run all stages as far as what they need is there; nobody is left waiting."""
    left = [list(OneOf(index, count).passes(microbatches)) for index in range(count)]
    sent_ahead, sent_back = [0] * (count + 1), [0] * (count + 1)
    sent_ahead[0] = sent_back[count] = microbatches
    moved = True
    while moved:
        moved = False
        for index, passes in enumerate(left):
            while passes:
                backward = passes[0].is_backward
                there = sent_back[index + 1] if backward else sent_ahead[index]
                if passes[0].microbatch >= there:
                    break
                passes.pop(0)
                moved = True
                if backward:
                    sent_back[index] += 1
                else:
                    sent_ahead[index + 1] += 1
                    sent_back[count] = microbatches
    assert left == [[]] * count


@pytest.mark.parametrize(
    ("layers", "stages", "sizes"), [(20, 4, [5] * 4), (20, 3, [7, 7, 6]), (3, 2, [2, 1]), (4, 4, [1] * 4)]
)
def test_layers_are_cut_into_runs(layers: int, stages: int, sizes: list[int]) -> None:
    runs = stage_layers(layers, stages)
    assert [len(run) for run in runs] == sizes
    assert [layer for run in runs for layer in run] == list(range(layers))
