"""Choosing, forcing and refusing back ends."""

import pytest
import torch

from ling.errors import BackendError
from ling.ops.backend import use_backend
from ling.ops.cpu import linear as cpu_linear
from ling.ops.linear import grouped_linear, linear
from ling.ops.norm import rms_norm

ROWS, WEIGHTS, OFFSETS = torch.ones(2, 4), torch.ones(1, 4, 4), torch.tensor([2], dtype=torch.int32)


def test_a_forced_back_end_that_cannot_run_says_why() -> None:
    with (
        use_backend("torch"),
        pytest.raises(BackendError, match=r"grouped_linear cannot use back end torch: .*float64"),
    ):
        grouped_linear(ROWS.double(), WEIGHTS.double(), OFFSETS)


def test_a_call_a_twin_cannot_take_falls_to_the_reference() -> None:
    out = grouped_linear(ROWS.double(), WEIGHTS.double(), OFFSETS)
    assert out.dtype == torch.float64
    assert grouped_linear(ROWS[:, :3], WEIGHTS[..., :3], OFFSETS).tolist() == [[3.0] * 4] * 2  # odd width


def test_an_unknown_name_is_refused() -> None:
    with (
        pytest.raises(BackendError, match="unknown back end tritn; known: reference, torch"),
        use_backend("tritn"),
    ):
        pass


def test_forcing_ends_with_the_block() -> None:
    with use_backend("reference"):
        pass
    torch.testing.assert_close(rms_norm(torch.ones(1, 2), torch.ones(2), 0.0), torch.ones(1, 2))
    with use_backend("torch"), use_backend("reference"):
        assert grouped_linear(ROWS.double(), WEIGHTS.double(), OFFSETS).dtype == torch.float64


def test_ops_name_their_back_ends() -> None:
    assert grouped_linear.backends == ("reference", "torch")


def test_what_is_faster_counts_only_where_nothing_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice by the number of rows would change the bits of a row under `invariant`."""
    monkeypatch.setattr(cpu_linear, "why_not", lambda *_: None)
    monkeypatch.setattr(cpu_linear, "rather_not", lambda x, *_: "many rows" if len(x) > 1 else None)
    monkeypatch.setattr(cpu_linear, "forward", lambda x, *_: x)
    rows, weight = torch.ones(2, 4), torch.ones(3, 4)
    assert linear(rows, weight).shape == (2, 3)
    with use_backend("invariant"):
        assert linear(rows, weight) is rows


@pytest.mark.slow
@pytest.mark.parametrize("learns", [False, True])
def test_a_compiled_graph_goes_through_ops_unbroken(learns: bool) -> None:
    """C kernels are called by address, of which a graph knows nothing, and a log record would end it."""

    def layer(x: torch.Tensor) -> torch.Tensor:
        return linear(rms_norm(x, torch.ones(4), 1e-6), WEIGHTS[0])

    x = ROWS.clone().requires_grad_(learns)
    with torch.set_grad_enabled(learns):
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))
