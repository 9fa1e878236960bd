"""Padding and unpadding are inverse, whatever the lengths."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ling.ops.ragged import Ragged

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@given(lengths)
def test_unpad_undoes_pad(lengths: list[int]) -> None:
    rows = Ragged(lengths)
    values = torch.arange(1.0, rows.total + 1)[:, None]
    padded = rows.pad(values)
    assert padded.shape == (len(lengths), max(lengths), 1)
    assert padded.sum() == values.sum()
    assert torch.equal(rows.unpad(padded), values)


@given(lengths)
def test_runs_cover_the_rows_in_order(lengths: list[int]) -> None:
    runs = Ragged(sorted(lengths)).runs
    assert [n for run in runs for n in run.lengths] == sorted(lengths)
    assert all(max(run.lengths) <= 1.5 * min(run.lengths) for run in runs) or len(runs) == 1


def test_index_tensors() -> None:
    rows = Ragged([2, 1, 3])
    assert rows.cu_seqlens.tolist() == [0, 2, 3, 6]
    assert rows.sequence_of_row.tolist() == [0, 0, 1, 2, 2, 2]
    assert rows.index_in_sequence.tolist() == [0, 1, 0, 0, 1, 2]
