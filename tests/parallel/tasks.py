"""What tests let ranks do, by name."""

import time

import torch
import torch.distributed as dist

from ling.distributed.collectives import all_to_all_rows, exchange_counts, sum_over


def add_up_ranks() -> tuple[int, int, int]:
    """Return rank, world size, and the sum of all ranks."""
    total = torch.tensor(dist.get_rank())
    dist.all_reduce(total)
    return dist.get_rank(), dist.get_world_size(), int(total)


def fail_on(rank: int) -> None:
    if dist.get_rank() == rank:
        raise ValueError(f"rank {rank} has had enough")
    dist.barrier()


def hang_on(rank: int) -> None:
    if dist.get_rank() == rank:
        time.sleep(600)


def send_rows(dtype: str, splits: list[list[int]]) -> tuple[list[float], list[float], list[int]]:
    """Send splits[me][other] rows that say where they are from; return them, and the gradient that comes back."""
    me, group = dist.get_rank(), dist.group.WORLD
    assert group is not None
    sent = splits[me]
    received = exchange_counts(torch.tensor(sent), group).tolist()
    values = torch.full((sum(sent), 3), float(me + 1))
    rows = values.to(getattr(torch, dtype))
    is_float = dtype == "float32"
    rows.requires_grad_(is_float)
    got = all_to_all_rows(rows, sent, received, group)
    assert got.dtype == rows.dtype
    gradient: list[float] = []
    if is_float:
        (got * (me + 1)).sum().backward()
        assert rows.grad is not None
        gradient = rows.grad[:, 0].tolist()
    return got.float()[:, 0].tolist(), gradient, received


def sum_two() -> list[list[int]]:
    group, me = dist.group.WORLD, dist.get_rank()
    assert group is not None
    return [t.tolist() for t in sum_over([torch.tensor([me, 1]), torch.tensor(2 * me)], group)]
