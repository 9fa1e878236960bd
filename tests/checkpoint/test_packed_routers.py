"""Beside packed weights routers are bfloat16 where that loses nothing, however the checkpoint came by them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.checkpoint.test_prepared import EVEN, assert_same, edit, prepare, save_tiny
from torch import Tensor

from ling.checkpoint import load_model
from ling.checkpoint.doctor import examine
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.prepare import verify_packed
from ling.checkpoint.prepared import packed_bytes
from ling.model import CausalLM
from ling.model.moe import Router


def routers(model: CausalLM) -> list[Tensor]:
    found = [module.weight for module in model.modules() if isinstance(module, Router)]
    assert found
    return found


def dtypes(model: CausalLM) -> set[torch.dtype]:
    return {weight.dtype for weight in routers(model)}


def stored(directory: Path) -> set[str]:
    return {
        opened.get_slice(key).get_dtype()
        for file in directory.glob("*.safetensors")
        for opened in [safe_open(file, framework="pt")]
        for key in opened.keys()  # noqa: SIM118 (not a dict)
        if key.endswith("mlp.gate.weight")
    }


def change_gates(directory: Path, change: Any) -> None:
    def apply(tensors: dict[str, Tensor]) -> None:
        tensors |= {key: change(value) for key, value in tensors.items() if key.endswith("mlp.gate.weight")}

    edit(directory, apply)


def rounded(gate: Tensor) -> Tensor:
    return gate.bfloat16().float()


@pytest.mark.parametrize(
    ("precision", "change", "dtype"),
    [
        ("bfloat16", None, torch.bfloat16),
        ("float8", None, torch.bfloat16),
        ("bfloat16", torch.Tensor.float, torch.bfloat16),
        ("float32", rounded, torch.bfloat16),
        ("float32", None, torch.float32),
        ("bfloat16", lambda gate: gate.float() * 1.001, torch.float32),
        ("bfloat16", lambda gate: (gate.float() * 1.001).half(), torch.float32),
    ],
)
def test_a_router_is_as_narrow_as_its_values(precision: str, change: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", precision, **EVEN)
    if change is not None:
        change_gates(source, change)
    prepared = prepare(source, tmp_path / "prepared", "int4")
    quantised = load_model(source, weights="int4", huge_pages=True)
    assert dtypes(quantised) == {dtype}
    assert stored(prepared) == {"BF16" if dtype == torch.bfloat16 else "F32"}
    assert_same(load_model(prepared), quantised)
    for ours, wide in zip(routers(quantised), routers(load_model(source, dtype=torch.bfloat16)), strict=True):
        assert wide.dtype == torch.float32  # of weights that are not packed
        assert torch.equal(ours.float(), wide)


def test_one_router_that_does_not_fit_stays_alone(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", **EVEN)

    def widen(tensors: dict[str, Tensor]) -> None:
        key = next(key for key in tensors if key.endswith("mlp.gate.weight"))
        tensors[key] = tensors[key].float()
        tensors[key][3, 5] = 1.001

    edit(source, widen)
    quantised = load_model(source, weights="int8")
    assert dtypes(quantised) == {torch.bfloat16, torch.float32}
    assert_same(load_model(prepare(source, tmp_path / "prepared", "int8")), quantised)


def test_files_with_float32_routers_load_and_hold_them_in_bfloat16(tmp_path: Path) -> None:
    prepared = prepare(save_tiny(tmp_path / "source", **EVEN), tmp_path / "prepared")
    wanted = load_model(prepared)
    change_gates(prepared, torch.Tensor.float)
    assert stored(prepared) == {"F32"}
    assert_same(load_model(prepared), wanted)
    found = [finding for finding in examine(prepared) if finding.check == "packed-weights"]
    assert [finding.severity for finding in found] == ["note"], found


def test_memory_is_planned_with_routers_as_published(tmp_path: Path) -> None:
    model = load_model(save_tiny(tmp_path / "source", **EVEN), weights="int4")
    assert packed_bytes(model.config, "int4") == sum(t.nbytes for t in model.state_dict().values())
    assert dtypes(model.to(torch.float64)) == {torch.bfloat16}, "a cast of the model reached its routers"


def test_files_of_an_interrupted_conversion_with_other_routers_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an earlier version of ling, which wrote float32: its shards end elsewhere."""
    source = save_tiny(tmp_path / "source", **EVEN)

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("ling.checkpoint.prepare.exact_dtype", lambda _: torch.float32)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "prepared", max_shard_bytes=60_000, progress=interrupt)
    assert [*tmp_path.glob(".prepared.partial-*/model-*.safetensors")]
    prepared = prepare(source, tmp_path / "prepared", max_shard_bytes=60_000)
    assert verify_packed(open_pieces(source), prepared, "int4") == len(load_model(prepared).state_dict())
    assert stored(prepared) == {"BF16"}
