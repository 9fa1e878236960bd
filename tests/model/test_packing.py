"""A document's output is its own: whatever lies beside it in the pack, however the pack is laid out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ling.model.batch import pack, shift_within
from ling.ops.ragged import Ragged
from ling.testing.models import tiny_model
from ling.testing.tolerances import BATCHING, assert_close

documents = st.lists(st.lists(st.integers(2, 127), min_size=1, max_size=24), min_size=1, max_size=5)
MODEL = tiny_model(num_nextn_predict_layers=2)


@torch.no_grad()
def run(documents: list[list[int]]) -> list[list[torch.Tensor]]:
    """Return, per document, its hidden states and those of both MTP depths."""
    output = MODEL(*pack(documents, mtp_depth=2))
    lengths = [len(d) for d in documents]
    return list(zip(*(h.split(lengths) for h in (output.hidden, *output.mtp_hidden)), strict=True))


@settings(max_examples=25, deadline=None)
@given(documents, st.integers(0, 4))
def test_neighbours_change_nothing(documents: list[list[int]], which: int) -> None:
    which %= len(documents)
    packed, alone = run(documents)[which], run([documents[which]])[0]
    for got, expected in zip(packed, alone, strict=True):
        assert_close(got, expected, BATCHING)


@settings(max_examples=25, deadline=None)
@given(documents, st.randoms(use_true_random=False))
def test_order_in_the_pack_changes_nothing(documents: list[list[int]], random) -> None:
    order = random.sample(range(len(documents)), len(documents))
    in_order, shuffled = run(documents), run([documents[i] for i in order])
    for place, i in enumerate(order):
        for got, expected in zip(shuffled[place], in_order[i], strict=True):
            assert_close(got, expected, BATCHING)


@pytest.mark.parametrize("changed", [0, 3, 7, 11])
def test_a_token_is_seen_from_its_own_slot_on_and_by_mtp_from_slots_before(changed: int) -> None:
    """spec model.md 11: main outputs change from slot p on, depth 0 from p - 1, depth 1 from p - 2."""
    document = list(range(2, 14))
    other = [*document[:changed], 99, *document[changed + 1 :]]
    for depth, (before, after) in enumerate(zip(run([document])[0], run([other])[0], strict=True)):
        first = max(0, changed - depth)
        moved = (before - after).abs().amax(1)
        assert bool((moved[:first] < BATCHING.absolute).all()), f"depth {depth}: {moved}"
        assert bool((moved[first:] > 100 * BATCHING.absolute).all()), f"depth {depth}: {moved}"


def test_tokens_ahead_stop_at_the_end_of_a_document() -> None:
    rows = Ragged([3, 1, 2])
    tokens = torch.tensor([10, 11, 12, 20, 30, 31])
    assert shift_within(tokens, rows, 2, fill=0).tolist() == [[11, 12, 0, 0, 31, 0], [12, 0, 0, 0, 0, 0]]


def test_mtp_layers_are_skipped_when_the_batch_brings_no_tokens_ahead() -> None:
    with torch.no_grad():
        output = MODEL(*pack([[5, 6, 7]]))
    assert output.mtp_hidden == []
    assert sorted(output.routings) == [1, 2]
