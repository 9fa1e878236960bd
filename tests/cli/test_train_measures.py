"""What a run measures of its model, on one rank and on several."""

import pytest
import torch.distributed as dist

from ling.cli.train.data import engine_of
from ling.testing.models import tiny_model
from ling.testing.text import IdTokenizer


@pytest.mark.parametrize(("ranks", "drafting"), [(1, "mtp"), (2, "none")])
def test_engines_of_several_ranks_do_not_draft_by_clocks_of_their_own(
    ranks: int, drafting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: ranks)
    model = tiny_model(num_nextn_predict_layers=1).requires_grad_(False)
    assert engine_of(model, IdTokenizer(model.config.vocab_size)).engine.drafting == drafting  # type: ignore[arg-type]
