"""The C library is optional, says once that it is missing, and shares torch's threads."""

import logging
import sys
from pathlib import Path

import pytest
import torch
from tests.ops.cpu.weights import CODES, draw

from ling.errors import BackendError
from ling.model.linear import Linear
from ling.ops.backend import use_backend
from ling.ops.cpu import library as lib
from ling.ops.linear import linear
from ling.ops.packed import quantize_int8
from ling.testing.tolerances import assert_close


def test_without_the_library_everything_runs_through_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = draw(3, 64), quantize_int8(draw(20, 64))
    with torch.no_grad():
        fast = linear(x, w)
        monkeypatch.setattr(lib, "library", lambda: None)
        plain = linear(x, w)
        assert plain.equal(x @ w.dequantize(torch.float32).T)
        assert_close(fast, plain, CODES)
        with use_backend("cpu"), pytest.raises(BackendError, match="linear cannot use back end cpu: the C library is"):
            linear(x, w)


@pytest.mark.parametrize("damage", ["absent", "broken", "stale"])
def test_a_missing_library_is_said_once(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if damage == "broken":
        Path(tmp_path, f"_kernels{lib.EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    if damage == "stale":  # there is a format that it does not know
        monkeypatch.setitem(lib.FORMATS, "int3", len(lib.FORMATS))
    else:
        monkeypatch.setattr(lib, "__file__", str(tmp_path / "library.py"))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            lib.library.__wrapped__()
    (record,) = caplog.records
    assert "the CPU kernels are off" in record.message
    said = {"absent": "C compiler", "broken": "cannot be opened", "stale": "belongs to another version of ling"}
    assert said[damage] in record.message


def test_a_level_that_this_processor_lacks_is_refused() -> None:
    with pytest.raises(BackendError, match="no sse9"), lib.opened().at_level("sse9"):
        pass
    assert lib.opened().level in lib.LEVELS


def test_the_library_uses_the_openmp_of_torch() -> None:
    """Two of them would be two pools of threads, each spinning while the other works."""
    if not sys.platform.startswith("linux"):
        pytest.skip("elsewhere the library is built without OpenMP")
    assert lib.library() is not None
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    pools = {line.split()[-1] for line in maps if "libgomp" in line or "libiomp" in line}
    assert len(pools) == 1, pools


def test_memory_kept_between_calls_can_be_given_back() -> None:
    x, w = draw(50, 64), quantize_int8(draw(20, 64))
    with torch.no_grad(), use_backend("cpu"):
        before = linear(x, w)
        lib.opened().release()
        assert linear(x, w).equal(before)


def test_weights_that_move_are_found_again() -> None:
    """What is kept between calls is kept by address: a model that is copied or cast must not read the old memory."""
    head = Linear(64, 20)
    head.keep_packed("int8")
    packed = quantize_int8(draw(20, 64))
    head.load_state_dict({"weight": packed.codes, "weight_scales": packed.scales})
    x = draw(2, 64)
    with torch.no_grad(), use_backend("cpu"):
        before = head(x)
        head._apply(torch.clone)
        head.to(torch.bfloat16)  # packed weights are pinned
        assert head(x).equal(before)
        head.load_state_dict({name: torch.zeros_like(t) for name, t in head.state_dict().items()})
        assert not bool(head(x).any())
