"""The search: what fits comes fastest first, what does not says by how much."""

import dataclasses

import pytest

from ling.config import ModelConfig, preset
from ling.errors import ConfigError
from ling.scaling.hardware import HARDWARE
from ling.scaling.precision import PRECISIONS
from ling.scaling.search import Plan, Request, search

MINI = ModelConfig(**preset("ling_mini")["model"])


def plan(gpus: int = 8, *, length: int = 4096, batch: int | None = None, gpu: str = "h100", **fixed) -> Plan:
    request = Request(gpus=gpus, sequence_length=length, global_batch_size=batch or 16 * gpus, fixed=fixed)
    return search(MINI, request, PRECISIONS["bfloat16"], HARDWARE[gpu])


def test_everything_offered_fits_uses_all_gpus_and_comes_fastest_first() -> None:
    found = plan()
    speeds = [c.step.tokens_per_second for c in found.fitting]
    assert speeds == sorted(speeds, reverse=True)
    assert len({str(c.layout) for c in found.fitting}) == len(found.fitting) > 5
    for c in found.fitting:
        assert c.memory.peak.total <= HARDWARE["h100"].usable_bytes
        assert c.layout.gpus == 8
        assert c.layout.data_parallel * c.work.micro_batch * c.work.microbatches == 128


def test_what_does_not_fit_is_kept_with_its_smallest_attempt() -> None:
    found = plan(4)
    assert found.too_large
    assert {c.layout.recompute for c in found.too_large} == {"full"}
    assert all(c.memory.peak.total > HARDWARE["h100"].usable_bytes for c in found.too_large)


def test_sixteen_billion_parameters_with_adam_do_not_fit_one_gpu() -> None:
    found = plan(1)
    assert not found.fitting
    assert found.too_large[0].memory.peak.moments == 8 * 16_255_638_528


def test_more_memory_fits_more() -> None:
    assert len(plan(4, gpu="h200").fitting) > len(plan(4).fitting)


def test_what_is_fixed_stays() -> None:
    found = plan(expert=8, recompute="full", pipeline=1)
    assert {(c.layout.expert, c.layout.recompute, c.layout.pipeline) for c in found.fitting} == {(8, "full", 1)}


def test_odd_numbers_of_gpus_have_a_layout_too() -> None:
    assert plan(7, gpu="h200").fitting[0].layout.data_parallel_shard == 7


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_parallel_shard": 3}, "no layout of 8 GPUs has data_parallel_shard 3"),
        ({"expert": 3}, "expert 3 does not fit 256 experts in 8 groups"),
        ({"batch": 3, "pipeline": 1, "tensor": 1}, "3 sequences per step cannot be shared out over 8 GPUs"),
        ({"length": 65536}, "sequence_length 65536 is beyond model.max_position_embeddings 32768"),
        ({"gpus": 0}, "gpus must be at least 1, got 0"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(**changes)


def test_a_search_of_a_thousand_gpus_is_quick() -> None:
    small = dataclasses.replace(MINI, num_hidden_layers=8)
    request = Request(gpus=1024, sequence_length=4096, global_batch_size=4096, fixed={})
    assert search(small, request, PRECISIONS["bfloat16"], HARDWARE["h100"]).fitting
