"""What ranks found in their parts of tensors, added up."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard

from ling.distributed import parts


class Mesh:
    """Two ranks along each axis, the first of which has copies."""

    def get_group(self, axis: int) -> str:
        return ("copies", "shards")[axis]

    def size(self, axis: int) -> int:
        return 2


def test_each_part_counts_once_and_copies_are_added_up_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups of shards may add up in two orders, to two results: what follows has to make them one."""
    groups = []

    def all_reduce(total: Tensor, group: str) -> None:
        groups.append(group)
        total.mul_(2)  # the other rank found the same

    monkeypatch.setattr(parts.dist, "all_reduce", all_reduce)
    shared = SimpleNamespace(device_mesh=Mesh(), placements=(Replicate(), Shard(0)))
    found = parts.sum_over_parts(torch.tensor([3.0, 5.0]), [shared, torch.zeros(1)])
    assert found.tolist() == [6, 5]
    assert groups == ["shards", "copies"]
