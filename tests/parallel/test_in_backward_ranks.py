"""Updates during backward on ranks that share weights and experts out: what one process comes to."""

from typing import Any

import pytest
import torch
from tests.parallel.in_backward_tasks import train

from ling.testing.ranks import RankPool

TASKS = "tests.parallel.in_backward_tasks"
PLAIN = {"clip_grad_norm": 0.0}
SMALL = {"weights": "bfloat16", "moments": "fp8"}
UPDATE = {"clipping": "update"}
RELEASED = {"in_backward": True}


@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        ("ep2", SMALL | UPDATE),
        *(
            pytest.param(layout, changes, marks=pytest.mark.slow)
            for layout, changes in (("ep2", {}), ("fsdp2", {}), ("fsdp2", SMALL), ("cp2", SMALL))
        ),
    ],
)
def test_one_microbatch_on_ranks_gives_the_bits_of_their_plain_step(
    ranks: RankPool, layout: str, changes: dict[str, Any]
) -> None:
    told = PLAIN | changes
    plain, released = (ranks.run(f"{TASKS}:train", 2, layout, 1, told | more)[0] for more in ({}, RELEASED))
    assert released[1] == pytest.approx(plain[1], rel=1e-5)
    for name, tensor in plain[0].items():
        assert torch.equal(released[0][name], tensor), name


@pytest.mark.parametrize(
    ("size", "layout"),
    [pytest.param(n, name, marks=pytest.mark.slow) for n, name in ((2, "ep2"), (4, "hsdp2xep2"), (2, "cp2"))],
)
@pytest.mark.parametrize("clipping", ["lagged", "update"])
def test_microbatches_on_ranks_come_to_what_one_process_does(
    ranks: RankPool, size: int, layout: str, clipping: str
) -> None:
    changes = {"in_backward": True, "clipping": clipping, "clip_grad_norm": 0.5 if clipping == "lagged" else 0.0}
    alone, norms = train(None, 2, changes)
    for found, measured in ranks.run(f"{TASKS}:train", size, layout, 2, changes):
        assert measured == pytest.approx(norms, rel=1e-3)
        assert found.keys() == alone.keys()
        for name, tensor in alone.items():
            assert (found[name] - tensor).abs().max() <= 1e-3 * max(1e-2, float(tensor.abs().max())), name


@pytest.mark.slow
@pytest.mark.parametrize(("size", "layout"), [(2, "ep2"), (4, "hsdp2xep2"), (4, "fsdp2xep2")])
@pytest.mark.parametrize("clipping", ["lagged", "update"])
def test_gathered_microbatches_of_small_states_stay_near_those_of_one_process_and_alike_on_copies(
    ranks: RankPool, size: int, layout: str, clipping: str
) -> None:
    changes = SMALL | RELEASED | {"clipping": clipping, "clip_grad_norm": 0.5 if clipping == "lagged" else 0.0}
    alone, norms = train(None, 2, changes)
    found = ranks.run(f"{TASKS}:train", size, layout, 2, changes)
    for tensors, measured in found:
        assert measured == found[0][1]
        assert measured == pytest.approx(norms, rel=5e-2)
        for name, tensor in tensors.items():
            assert torch.equal(tensor, found[0][0][name]), name
            if name.startswith("model/") and not name.endswith("expert_bias"):
                apart = (tensor.float() - alone[name].float()).norm() / alone[name].float().norm()
                assert apart < 0.05, (name, apart)


def test_what_is_not_finite_on_one_rank_stops_all_of_them_at_the_same_layer(ranks: RankPool) -> None:
    found = ranks.run(f"{TASKS}:meet_what_is_not_finite", 2, "ep2")
    assert found[0] == found[1]
    broken, message, late_ones_moved = found[0]
    assert broken == "model.layers.1"
    assert "training diverges: at step 1" in message
    assert not late_ones_moved
