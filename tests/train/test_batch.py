"""Labels: what a slot predicts, within its document and under its mask."""

from ling.ops.cross_entropy import IGNORE
from ling.train.batch import build_batch

X = IGNORE


def test_labels_shift_within_documents_and_under_the_mask() -> None:
    documents = [[10, 11, 12, 13], [20, 21]]
    masks = [[False, False, True, True], [True, True]]
    batch = build_batch(documents, masks, 2)
    assert batch.tokens.tolist() == [10, 11, 12, 13, 20, 21]
    assert batch.positions.tolist() == [0, 1, 2, 3, 0, 1]
    assert batch.labels.tolist() == [X, 12, 13, X, 21, X]
    assert batch.mtp_labels.tolist() == [[12, 13, X, X, X, X], [13, X, X, X, X, X]]
    assert batch.attention.mtp_ids.tolist() == [[11, 12, 13, 0, 21, 0], [12, 13, 0, 0, 0, 0]]


def test_mtp_never_learns_what_is_masked() -> None:
    batch = build_batch([[10, 11, 12, 13, 14]], [[True, True, False, False, True]], 2)
    assert batch.labels.tolist() == [11, X, X, 14, X]
    assert batch.mtp_labels.tolist() == [[X, X, 14, X, X], [X, 14, X, X, X]]


def test_without_mtp_there_is_nothing_ahead() -> None:
    batch = build_batch([[1, 2]], [[True, True]], 0)
    assert batch.mtp_labels.shape == (0, 2)
    assert batch.attention.mtp_ids is None


def test_a_batch_moves_with_everything_in_it() -> None:
    batch = build_batch([[1, 2, 3], [4, 5]], [[True] * 3, [True] * 2], 1)
    assert batch.to("cpu") is batch
    moved = batch.to("meta")
    tensors = (moved.tokens, moved.positions, moved.labels, moved.mtp_labels, moved.attention.mtp_ids)
    assert {tensor.device.type for tensor in tensors if tensor is not None} == {"meta"}
    assert moved.attention.rows.lengths == (3, 2)
    assert moved.attention.rows.device.type == "meta"
