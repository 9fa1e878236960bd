"""What each of two ranks holds of the demo's network: weights and moments, beside one process.

    python -m benchmarks.ranks_memory

Two gloo processes on this machine, FSDP2 with the experts shared out, three steps of AdamW in float32.
"""

import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.plan_memory import random_batch
from benchmarks.results import save
from ling.config import ModelConfig, preset
from ling.config.parallel import ParallelConfig
from ling.config.recipe import Recipe
from ling.optim.build import build_optimizer, state_tensors
from ling.parallel.build import build_model
from ling.parallel.ranks import Ranks
from ling.scaling.layout import plan_layout
from ling.train.step import train_step

TARGET_PERCENT = 60
MODEL = ModelConfig(**preset("demo")["model"])


def main() -> None:
    context = multiprocessing.get_context("spawn")
    found: dict[int, list[dict[str, int]]] = {}
    for size in (1, 2):
        with tempfile.TemporaryDirectory() as meeting, context.Pool(size) as pool:
            found[size] = pool.starmap(hold, [(rank, size, str(Path(meeting) / "store")) for rank in range(size)])
    (whole,) = found[1]
    shares = [100 * sum(rank.values()) / sum(whole.values()) for rank in found[2]]
    for rank, (held, share) in enumerate(zip(found[2], shares)):
        print(f"rank {rank} of 2: {held} bytes, {share:.1f} % of one process's {whole} (target: {TARGET_PERCENT})")
    numbers: dict[str, Any] = {"one_process": whole, "ranks": found[2], "percent": shares, "target": TARGET_PERCENT}
    print(f"kept in {save('ranks-memory', numbers)}")


def hold(rank: int, size: int, store: str) -> dict[str, int]:
    """Train on one of `size` ranks; return the bytes of weights and of optimizer state it holds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
    recipe = Recipe(model=MODEL, parallel=ParallelConfig(expert=size))
    ranks = Ranks(plan_layout(recipe.parallel, MODEL, size, 256))
    model = build_model(MODEL, ranks, torch.Generator().manual_seed(0))
    optimizer = build_optimizer(model, recipe.optim)
    for step in range(3):
        train_step(model, optimizer, [random_batch(MODEL, 256, 1)], recipe, step, ranks)
    held = {"parameters": model.state_dict().values(), "optimizer": state_tensors(model, optimizer).values()}
    dist.destroy_process_group()
    return {name: sum(_bytes(t) for t in tensors) for name, tensors in held.items()}


def _bytes(tensor: Any) -> int:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.numel() * local.element_size()


if __name__ == "__main__":
    main()
