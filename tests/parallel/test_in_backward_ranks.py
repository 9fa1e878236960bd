"""Updates during backward on ranks that share weights and experts out: what one process comes to."""

import pytest
import torch
from tests.parallel.in_backward_tasks import train

from ling.testing.ranks import RankPool

TASKS = "tests.parallel.in_backward_tasks"
PLAIN = {"clip_grad_norm": 0.0}
RELEASED = PLAIN | {"in_backward": True}


@pytest.mark.parametrize("layout", ["ep2", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_one_microbatch_on_ranks_gives_the_bits_of_their_plain_step(ranks: RankPool, layout: str) -> None:
    plain, released = (ranks.run(f"{TASKS}:train", 2, layout, 1, changes)[0] for changes in (PLAIN, RELEASED))
    assert released[1] == pytest.approx(plain[1], rel=1e-5)
    for name, tensor in plain[0].items():
        assert torch.equal(released[0][name], tensor), name


@pytest.mark.parametrize(
    ("size", "layout"),
    [pytest.param(n, name, marks=pytest.mark.slow) for n, name in ((2, "ep2"), (4, "hsdp2xep2"), (2, "cp2"))],
)
def test_microbatches_on_ranks_come_to_what_one_process_does(ranks: RankPool, size: int, layout: str) -> None:
    changes = {"in_backward": True, "clipping": "lagged", "clip_grad_norm": 0.5}
    alone, norms = train(None, 2, changes)
    for found, measured in ranks.run(f"{TASKS}:train", size, layout, 2, changes):
        assert measured == pytest.approx(norms, rel=1e-3)
        assert found.keys() == alone.keys()
        for name, tensor in alone.items():
            assert (found[name] - tensor).abs().max() <= 1e-3 * max(1e-2, float(tensor.abs().max())), name


def test_what_is_not_finite_on_one_rank_stops_all_of_them_at_the_same_layer(ranks: RankPool) -> None:
    found = ranks.run(f"{TASKS}:meet_what_is_not_finite", 2, "ep2")
    assert found[0] == found[1]
    broken, message, late_ones_moved = found[0]
    assert broken == "model.layers.1"
    assert "training diverges: at step 1" in message
    assert not late_ones_moved
