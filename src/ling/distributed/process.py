"""This process among others: alone, or one of those that torchrun started."""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ling.errors import ConfigError

_FROM_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Process:
    """Who this process is."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether it is the one that speaks for all."""
        return self.rank == 0

    def wait_for_all(self) -> None:
        """Return when every process has got here."""
        if self.world_size > 1:
            dist.barrier()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first process through before the others, which find what it left on the disk."""
        if not self.is_first:
            self.wait_for_all()
        try:
            yield
        finally:  # whatever stopped the first will stop the others, each with the same line
            if self.is_first:
                self.wait_for_all()


def speaks() -> bool:
    """Whether this process is alone, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def join_processes(device: str = "cpu", *, timeout_minutes: float = 30.0, as_group: bool = False) -> Iterator[Process]:
    """Meet the processes that torchrun started with this one, and part at the end; alone without torchrun.

    device           cpu (gloo) or cuda (NCCL, and gloo for tensors on the host)
    timeout_minutes  how long one waits for the others in any exchange before it gives up
    as_group         whether a process that is alone makes up a group, too
    Raises ConfigError if torchrun's environment is incomplete or there are fewer GPUs than processes on this machine.
    """
    if "WORLD_SIZE" not in os.environ:
        if as_group:
            dist.init_process_group(_backend(device), store=dist.HashStore(), rank=0, world_size=1)
        try:
            yield Process(0, 1, torch.device(device))
        finally:
            if as_group:
                dist.destroy_process_group()
        return
    if missing := [name for name in _FROM_TORCHRUN if not os.environ.get(name)]:
        raise ConfigError(f"WORLD_SIZE is set but {missing[0]} is not; start with torchrun, or unset WORLD_SIZE")
    rank, size, local = (_integer(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    here = torch.device(device)
    if here.type == "cuda":
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"rank {rank} would use GPU {local}, but this machine has {torch.cuda.device_count()}; start torchrun "
                f"with --nproc-per-node={max(1, torch.cuda.device_count())}"
            )
        here = torch.device("cuda", local)
        torch.cuda.set_device(here)
    dist.init_process_group(_backend(here.type), timeout=datetime.timedelta(minutes=timeout_minutes))
    try:
        yield Process(rank, size, here)
    finally:
        dist.destroy_process_group()


def _backend(device: str) -> str:
    return "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"


def _integer(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise ConfigError(f"{name}={os.environ[name]!r} is not a number; start with torchrun") from None
