"""Training in bfloat16: what is rounded and what is not, the same on every layout."""

import pytest
import torch
from tests.parallel.parity import LAYOUTS, join_stages, train

from ling.testing.ranks import RankPool

TASKS = "tests.parallel.parity"
ARGUMENTS = ("none", 2, True, 1, None, ())


@pytest.mark.parametrize(
    "layout",
    ["fsdp2", "ep4", "pp2xcp2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tp2", "hsdp2xtp2"))],
)
def test_layouts_in_bfloat16_train_as_one_rank_does_within_its_rounding(ranks: RankPool, layout: str) -> None:
    one = join_stages(ranks.run(f"{TASKS}:train_and_keep_stages", 1, "one", *ARGUMENTS, "bfloat16"))
    got = join_stages(ranks.run(f"{TASKS}:train_and_keep_stages", LAYOUTS[layout][0], layout, *ARGUMENTS, "bfloat16"))
    exact = train(None, packed=True)
    main = [[step[1] for step in trained.losses] for trained in (got, one, exact)]
    assert main[0] == pytest.approx(main[1], rel=5e-3)
    assert main[1] == pytest.approx(main[2], rel=5e-3)
    assert main[1] != main[2]
    assert got.norms == pytest.approx(one.norms, rel=5e-2)
    assert all(weight.dtype == torch.float32 for weight in got.weights.values())


@pytest.mark.parametrize(("size", "layout"), [(1, "one"), (4, "fsdp2xep2"), (4, "fsdp2xtp2")])
def test_routers_see_exact_weights_and_everything_else_is_bfloat16(ranks: RankPool, size: int, layout: str) -> None:
    for found in ranks.run(f"{TASKS}:what_is_computed", size, layout):
        assert (found["hidden"], found["stream"]) == (torch.bfloat16, torch.bfloat16)
        assert found["stored"] == {torch.float32}
        assert found["logits"].dtype == torch.float32
        torch.testing.assert_close(found["logits"], found["exact"], rtol=0, atol=1e-5)
        assert (found["logits"] - found["rounded"]).abs().max() > 1e-4
