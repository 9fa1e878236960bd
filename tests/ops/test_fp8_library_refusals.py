"""Libraries for FP8 products that cannot be used say why in one line, and one that cannot multiply is found out."""

import sys
from typing import Any

import pytest
import torch
from tests.ops import fp8_contracts as contracts
from tests.ops.fp8_contracts import draw, operands
from torch import Tensor

from ling.errors import BackendError
from ling.ops import hopper
from ling.ops.backend import on_backend
from ling.ops.deep_gemm import library
from ling.ops.fp8 import E5M2
from ling.ops.fp8_linear import Fp8Rule
from ling.ops.fp8_matmul import fp8_grouped_matmul, fp8_matmul
from ling.ops.fp8_tensor import Fp8Tensor
from ling.ops.fp8_trial import try_products
from ling.ops.scaled_mm import fp8_matmul as by_scaled_mm

BF16, CPU = torch.bfloat16, torch.device("cpu")
LIBRARIES = ("scaled_mm", "deep_gemm")
pytestmark = pytest.mark.usefixtures("nothing_remembered")


@pytest.mark.parametrize("library", LIBRARIES)
def test_on_a_cpu_they_say_what_they_run_on(library: str) -> None:
    with pytest.raises(BackendError, match=f"fp8_matmul cannot use back end {library}: its products run on CUDA"):
        on_backend(library, fp8_matmul)(*operands(4, 128, 128), BF16)


@pytest.mark.parametrize("capability", [(8, 9), (10, 0)])
def test_a_gpu_that_is_not_hopper_is_refused(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    reason = hopper.refuse_device(torch.device("cuda"))
    assert reason is not None
    assert reason.endswith(f"this one has {capability[0]}.{capability[1]}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert hopper.refuse_device(torch.device("cuda")) is None
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert hopper.refuse_device(torch.device("cuda")) == "its products are for NVIDIA's GPUs"


@pytest.mark.parametrize(("built", "refused"), [(None, True), ("12.8", True), ("12.9", False), ("13.0", False)])
@pytest.mark.usefixtures("doubles")
def test_a_torch_of_an_older_cuda_is_refused(monkeypatch: pytest.MonkeyPatch, built: str | None, refused: bool) -> None:
    monkeypatch.setattr(torch.version, "cuda", built)
    reason = by_scaled_mm.why_not(*operands(4, 128, 128), BF16)
    assert reason == (f"it needs a torch that is built with CUDA 12.9 or later, and this one has {built or 'none'}"
                      if refused else None)  # fmt: skip


def breaking(error: Exception) -> type:
    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            if name == "deep_gemm":
                raise error

    return Finder


LOADING = {
    "deep_gemm is not installed": ModuleNotFoundError("No module named 'deep_gemm'", name="deep_gemm"),
    "deep_gemm needs cuda_bindings, which": ModuleNotFoundError("No module", name="cuda_bindings"),
    "deep_gemm does not load: libcudart.so.13": OSError("libcudart.so.13: cannot open\nmore"),
    "deep_gemm does not load: AssertionError": AssertionError(),
}


@pytest.mark.parametrize("line", LOADING)
def test_a_library_that_does_not_load_is_refused(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.delitem(sys.modules, "deep_gemm", raising=False)
    monkeypatch.setattr(sys, "meta_path", [breaking(LOADING[line]), *sys.meta_path])
    reason = library.find()
    assert isinstance(reason, str)
    assert reason.startswith(line)
    assert "\n" not in reason


def test_a_library_that_is_too_old_or_reads_other_groups_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = contracts.deep_gemm()
    delattr(old, library.DENSE)
    contracts.install(monkeypatch, old)
    assert library.find() == "this deep_gemm has no fp8_gemm_nt; install sgl-deep-gemm 0.2.5 or later"
    contracts.install(monkeypatch, contracts.deep_gemm(**{library.ALIGNMENT: lambda: 256}))
    reason = library.find()
    assert isinstance(reason, str)
    assert "at multiples of 256, and ours begin at multiples of 128" in reason


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.usefixtures("doubles")
def test_operands_that_they_do_not_take_are_refused(name: str) -> None:
    product = on_backend(name, fp8_matmul)
    rows, weight = operands(4, 128, 128)
    with pytest.raises(BackendError, match="its results are bfloat16, not float32"):
        product(rows, weight, torch.float32)
    with pytest.raises(BackendError, match="a weight of 144 x 128 is not made of whole blocks of 128 x 128"):
        product(rows, Fp8Tensor.of_blocks(draw(0, 144, 128)), BF16)
    with pytest.raises(BackendError, match="a weight of 128 x 144 is not"):
        product(Fp8Tensor.of_tiles(draw(0, 4, 144)), Fp8Tensor.of_blocks(draw(0, 128, 144)), BF16)
    with pytest.raises(BackendError, match="tiles by blocks, not blocks by blocks"):
        product(weight, weight, BF16)


@pytest.mark.usefixtures("doubles")
def test_deep_gemm_takes_one_format_and_whole_groups() -> None:
    with pytest.raises(BackendError, match="it multiplies float8_e4m3fn, not float8_e5m2"):
        on_backend("deep_gemm", fp8_matmul)(*operands(4, 128, 128, E5M2), BF16)
    assert on_backend("scaled_mm", fp8_matmul)(*operands(4, 128, 128, E5M2), BF16).isfinite().all()
    rows, weights = Fp8Tensor.of_tiles(draw(0, 144, 128)), Fp8Tensor.of_blocks(draw(1, 1, 128, 128))
    with pytest.raises(BackendError, match="144 rows are no multiple of 128"):
        on_backend("deep_gemm", fp8_grouped_matmul)(rows, weights, torch.tensor([144], dtype=torch.int32), BF16)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.usefixtures("doubles")
def test_a_trial_finds_a_library_that_multiplies(name: str) -> None:
    assert try_products(Fp8Rule(backend=name), (256, 128), CPU, grouped=False) is None
    if name == "deep_gemm":
        assert try_products(Fp8Rule(backend=name), (128, 256), CPU, grouped=True) is None


@pytest.mark.parametrize("power_of_two", [True, False])
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_trial_finds_scales_of_blocks_that_are_read_in_the_place_of_others(
    monkeypatch: pytest.MonkeyPatch, name: str, power_of_two: bool
) -> None:
    def rolled(scale: Tensor) -> Tensor:
        return torch.empty_like(scale).copy_(scale.roll(1, -1))  # strides stay

    def by_torch(a: Tensor, b: Tensor, scale_a: Tensor, kind: object, scale_b: Tensor, *more: Any, **kw: Any) -> Tensor:
        return contracts.scaled_mm(a, b, scale_a, kind, rolled(scale_b), *more, **kw)

    def by_deep_gemm(a: Any, b: tuple[Tensor, Tensor], d: Tensor) -> None:
        contracts.fp8_gemm_nt(a, (b[0], rolled(b[1])), d)

    contracts.install(monkeypatch, contracts.deep_gemm(**{library.DENSE: by_deep_gemm}))
    monkeypatch.setattr(by_scaled_mm, "scaled_mm", by_torch)
    rule = Fp8Rule(power_of_two=power_of_two, backend=name)
    assert "% off" in str(try_products(rule, (256, 256), CPU, grouped=False))


def test_a_trial_tells_a_library_that_fails_and_one_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("nvcc not found\nin any place")

    contracts.install(monkeypatch, contracts.deep_gemm(**{library.DENSE: fail}))
    reason = try_products(Fp8Rule(backend="deep_gemm"), (128, 128), CPU, grouped=False)
    assert reason == "a trial product by a weight of 128 x 128 fails: nvcc not found"

    contracts.install(monkeypatch, contracts.deep_gemm(**{library.DENSE: lambda a, b: None}))
    reason = try_products(Fp8Rule(backend="deep_gemm"), (128, 128), CPU, grouped=False)
    assert "fails: " in str(reason), "a version with other arguments"

    monkeypatch.setattr(by_scaled_mm, "scaled_mm", lambda *a, **b: contracts.scaled_mm(*a, **b) * 1.5)
    reason = try_products(Fp8Rule(backend="scaled_mm"), (128, 128), CPU, grouped=False)
    assert reason == "a trial product by a weight of 128 x 128 is 50.0% off"

    monkeypatch.setattr(by_scaled_mm, "scaled_mm", lambda *a, **b: contracts.scaled_mm(*a, **b) * torch.nan)
    reason = try_products(Fp8Rule(backend="scaled_mm"), (128, 128), CPU, grouped=False)
    assert reason is not None
    assert "nan% off" in reason
    assert "float8_e5m2" in str(try_products(Fp8Rule(E5M2, backend="deep_gemm"), (128, 128), CPU, grouped=True))
