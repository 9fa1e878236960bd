"""Triton's twins where there is no GPU: they are there, are not chosen, and say why."""

import subprocess
import sys

import pytest
import torch

from ling.errors import BackendError
from ling.ops.backend import use_backend
from ling.ops.norm import rms_norm
from ling.ops.router import RouterRule, route
from ling.ops.triton import available, norm

X, WEIGHT = torch.ones(2, 32), torch.ones(32)


@pytest.mark.skipif(not available.INSTALLED, reason="triton is not installed")
def test_forced_on_a_cpu_they_say_what_they_run_on() -> None:
    with use_backend("triton"), pytest.raises(BackendError, match="run on CUDA devices, not on cpu"):
        rms_norm(X, WEIGHT, 1e-6)
    with use_backend("triton"), pytest.raises(BackendError, match="route cannot use back end triton: its kernels"):
        route(X, torch.eye(32), None, RouterRule(2, 4, 2, 1.0))


def test_without_triton_everything_else_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "INSTALLED", False)
    assert rms_norm(X, WEIGHT, 0.0).tolist() == X.tolist()
    with use_backend("triton"), pytest.raises(BackendError, match="triton is not installed"):
        rms_norm(X, WEIGHT, 1e-6)


def test_tensors_that_stand_for_others_are_refused() -> None:
    class Wrapped(torch.Tensor):
        pass

    reason = available.refuse(X.as_subclass(Wrapped))
    assert reason in ("a Wrapped has no address of its own", "triton is not installed")


@pytest.mark.slow
def test_a_compiled_graph_traces_through_their_reasons() -> None:
    def choose(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if norm.why_not(x, WEIGHT, 1e-6) else x

    assert torch.equal(torch.compile(choose, fullgraph=True, backend="eager")(X), X + 1)


@pytest.mark.slow
def test_ops_do_not_import_triton_before_a_kernel_runs() -> None:
    """It takes 0.4 s to import, which every command would pay."""
    code = "import sys, ling.ops.moe, ling.ops.fp8_experts, ling.optim.build; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
