"""Four processes that meet over gloo, started once and given one task after the other.

A pool's processes are forked from a server that has imported torch and nothing else, so that they start in no time
and inherit no threads. A task is a function named `module:function`; it runs on the first `world_size` of them, in a
process group of their own, and returns something that pickles. Where one fails the others wait for it in vain, so the
pool is killed and started afresh; so it is when the time is up, with the place where each rank hangs in the message.
"""

import faulthandler
import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

MAX_RANKS = 4
_GRACE_SECONDS = 1.0


class RanksFailedError(Exception):
    """A task that failed or hung on some rank: which, and their tracebacks."""


class RankPool:
    """The processes; `run` gives them a task."""

    def __init__(self) -> None:
        self._ranks: list[tuple[ForkServerProcess, Connection]] = []
        self._directory = tempfile.TemporaryDirectory(prefix="ling-ranks-")
        self._meetings = 0

    def run(self, task: str, world_size: int, *arguments: Any, timeout_seconds: float = 60.0) -> list[Any]:
        """Run `module:function` with `arguments` on ranks 0 to world_size - 1 and return what each returned.

        Raises RanksFailedError with the tracebacks of the ranks that failed, or where they hung.
        """
        assert 1 <= world_size <= MAX_RANKS, world_size
        if not self._ranks:
            self._start()
        self._meetings += 1
        meeting = str(Path(self._directory.name) / f"meeting_{self._meetings}")
        ranks = self._ranks[:world_size]
        for _, connection in ranks:
            connection.send_bytes(pickle.dumps((task, world_size, meeting, arguments)))
        answers = self._collect([connection for _, connection in ranks], timeout_seconds)
        failed = {rank: text for rank, (good, text) in answers.items() if not good}
        silent = [rank for rank in range(world_size) if rank not in answers]
        if not failed and not silent:
            return [answers[rank][1] for rank in range(world_size)]
        report = "\n".join(f"rank {rank} of {world_size}:\n{text}" for rank, text in failed.items())
        if not failed:
            report = f"rank {silent[0]} of {world_size} gave no answer in {timeout_seconds:g} s\n{self._where(silent)}"
        self.kill()
        raise RanksFailedError(f"{task}\n{report}")

    def kill(self) -> None:
        """End all processes; the next task starts new ones."""
        for process, connection in self._ranks:
            process.kill()
            connection.close()
        for process, _ in self._ranks:
            process.join()
        self._ranks = []

    def close(self) -> None:
        """End all processes and remove what they met in."""
        self.kill()
        self._directory.cleanup()

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch.distributed.fsdp", "torch.distributed.checkpoint", __name__])
        for rank in range(MAX_RANKS):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, theirs, str(self._stacks(rank))), daemon=True)
            process.start()
            theirs.close()
            self._ranks.append((process, ours))

    def _collect(self, connections: list[Connection], timeout_seconds: float) -> dict[int, tuple[bool, Any]]:
        answers: dict[int, tuple[bool, Any]] = {}
        end = time.monotonic() + timeout_seconds
        while len(answers) < len(connections):
            open_ones = [c for rank, c in enumerate(connections) if rank not in answers]
            ready = wait(open_ones, max(0.0, end - time.monotonic()))
            if not ready:
                break
            for connection in ready:
                assert isinstance(connection, Connection)
                rank = connections.index(connection)
                try:
                    answers[rank] = pickle.loads(connection.recv_bytes())
                except EOFError:
                    answers[rank] = (False, "the process died")
                if not answers[rank][0]:
                    end = min(end, time.monotonic() + _GRACE_SECONDS)
        return answers

    def _where(self, ranks: list[int]) -> str:
        for rank in ranks:
            os.kill(self._ranks[rank][0].pid or 0, signal.SIGUSR1)
        time.sleep(_GRACE_SECONDS / 2)
        return "\n".join(f"rank {rank} hangs in\n{self._stacks(rank).read_text()}" for rank in ranks)

    def _stacks(self, rank: int) -> Path:
        return Path(self._directory.name) / f"stacks_{rank}"


def _forget_meshes() -> None:
    """Empty what torch keeps of tensors on meshes: the next task's look alike, but their groups have other names."""
    from torch.distributed.tensor import _redistribute
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache

    _clear_sharding_prop_cache()
    _redistribute._gen_transform_infos.cache_clear()


def _serve(rank: int, connection: Connection, stacks: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    with open(stacks, "w", encoding="utf-8") as file:
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
        while True:
            try:
                task, world_size, meeting, arguments = pickle.loads(connection.recv_bytes())
            except EOFError:
                return
            try:
                store = dist.FileStore(meeting, world_size)
                dist.init_process_group(
                    "gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=120)
                )
                module, _, name = task.partition(":")
                answer = pickle.dumps((True, getattr(importlib.import_module(module), name)(*arguments)))
                dist.barrier()
                dist.destroy_process_group()
                _forget_meshes()
            except BaseException:
                answer = pickle.dumps((False, traceback.format_exc()))
            connection.send_bytes(answer)
            sys.stdout.flush()
