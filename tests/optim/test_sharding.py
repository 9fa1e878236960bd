"""Parameters that two ranks share: the same steps as one process takes."""

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from ling.config.training import OptimConfig
from ling.optim.muon_adamw import ADAMW, MUON, MuonAdamW
from ling.testing.tolerances import SUM_ORDER, assert_close

# Name: shape, method, rows of its matrices, how it is cut. Uneven shares and one of nothing are among them.
PARAMETERS: dict[str, tuple[tuple[int, ...], str, tuple[int, ...], Any]] = {
    "experts": ((5, 12, 16), MUON, (6, 6), Shard(0)),
    "one expert": ((1, 4, 6), MUON, (4,), Shard(0)),
    "experts by rows": ((3, 12, 16), MUON, (6, 6), Shard(1)),
    "query_key_value": ((32, 16), MUON, (16, 8, 8), Shard(0)),
    "dense": ((7, 16), MUON, (7,), Shard(0)),
    "by columns": ((8, 10), MUON, (8,), Shard(1)),
    "embedding": ((9, 6), ADAMW, (), Shard(0)),
    "norm": ((6,), ADAMW, (), Replicate()),
}
STILL_ROW = 7


def run(cut: Callable[[Tensor, Any], Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Take three steps with parameters and gradients as `cut` holds them."""
    generator = torch.Generator().manual_seed(0)
    parameters = {
        name: torch.nn.Parameter(cut(torch.randn(shape, generator=generator).to(dtype), placement))
        for name, (shape, _, _, placement) in PARAMETERS.items()
    }
    optimizer = MuonAdamW(
        [
            {"params": [parameters[n] for n, p in PARAMETERS.items() if p[1] == method], "method": method}
            | {"weight_decay": 0.1}
            for method in (MUON, ADAMW)
        ],
        OptimConfig(lr=0.01, master_weights=True),
        parts={parameters[n]: p[2] for n, p in PARAMETERS.items() if p[1] == MUON},
        still_rows={parameters["embedding"]: STILL_ROW},
    )
    for _ in range(3):
        for name, (shape, _, _, placement) in PARAMETERS.items():
            gradient = torch.randn(shape, generator=generator).to(dtype)
            if name == "embedding":
                gradient[STILL_ROW] = 0
            parameters[name].grad = cut(gradient, placement)
        optimizer.step()
    return {name: p.detach() for name, p in parameters.items()}


def compare_with_one_process(mesh: DeviceMesh) -> None:
    def cut(tensor: Tensor, placement: Any) -> Tensor:
        return distribute_tensor(tensor, mesh, [placement])

    for dtype in (torch.float32, torch.bfloat16):
        expected, got = run(lambda tensor, _: tensor, dtype), run(cut, dtype)
        for name, value in got.items():
            assert isinstance(value, DTensor), name
            assert_close(value.full_tensor(), expected[name], SUM_ORDER, f"{name} in {dtype}")


def test_two_ranks_step_as_one_process_does(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=enter, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    said = "".join(path.read_text() for path in tmp_path.glob("failed_*"))
    assert [process.exitcode for process in ranks] == [0, 0], said


def enter(rank: int, directory: Path) -> None:
    try:
        dist.init_process_group("gloo", init_method=f"file://{directory / 'meet'}", rank=rank, world_size=2)
        compare_with_one_process(init_device_mesh("cpu", (2,)))
        dist.destroy_process_group()
    except BaseException:
        (directory / f"failed_{rank}").write_text(traceback.format_exc())
        raise


def test_the_still_row_is_where_the_values_show_it() -> None:
    generator = torch.Generator().manual_seed(0)
    first = [torch.randn(shape, generator=generator) for shape, *_ in PARAMETERS.values()]
    start = dict(zip(PARAMETERS, first, strict=True))["embedding"]
    moved = (run(lambda tensor, _: tensor)["embedding"] != start).any(1)
    assert [i for i, changed in enumerate(moved.tolist()) if not changed] == [STILL_ROW]
