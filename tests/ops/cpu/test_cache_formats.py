"""Attention in C to caches of every format: what is written, what is read, and the order of operations."""

from collections.abc import Iterator

import pytest
import torch
from tests.ops.cpu.test_kernels import paged
from tests.ops.cpu.weights import SUMS, draw, levels, threads
from torch import Tensor

from ling.errors import BackendError
from ling.ops.backend import use_backend
from ling.ops.cpu import paged_attention as cpu
from ling.ops.cpu.library import opened
from ling.ops.paged_attention import BlockStore, HeldBlocks, paged_attention, paged_step, write
from ling.ops.ragged import Ragged
from ling.testing.tolerances import assert_close

FORMATS = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
P = 16


@pytest.fixture(autouse=True)
def nothing_learns() -> Iterator[None]:
    with torch.no_grad():
        yield


def empty(blocks: int, K: int, D: int, format: torch.dtype) -> BlockStore:
    keys, values = (torch.zeros(blocks, P, K, D, dtype=format) for _ in range(2))
    if format != torch.float8_e4m3fn:
        return BlockStore(keys, values)
    return BlockStore(keys, values, torch.zeros(blocks, P, K), torch.zeros(blocks, P, K))


def flat(store: BlockStore) -> BlockStore:
    return BlockStore(*(None if part is None else part.flatten(0, 1) for part in store))  # type: ignore[arg-type]


def held_as(format: torch.dtype, store: BlockStore) -> BlockStore:
    blocks, _, K, D = store.keys.shape
    rounded = empty(blocks, K, D, format)
    write(flat(rounded), torch.arange(blocks * P), *flat(store)[:2])
    return rounded


def bits(x: Tensor) -> Tensor:
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.dtype.itemsize])


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("heads", [(4, 2, 16), (3, 1, 48), (16, 4, 128)], ids=str)
def test_what_is_read_is_what_the_reference_reads(heads: tuple[int, int, int], format: torch.dtype, level: str) -> None:
    for lengths in (
        [(1, 300, 0)],
        [(9, 9, 0), (1, 40, 3)],
        [(5, 270, 0), (2, 600, 257), (1, 256, 255)],
        [(90, 130, 2)],
    ):
        q, store, rows, held = paged(lengths, *heads)
        store = held_as(format, store)
        with use_backend("cpu"):
            got = paged_attention(q, store, rows, held)
        with use_backend("reference"):
            assert_close(got, paged_attention(q, store, rows, held), SUMS, f"{lengths} in {format}")


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_new_rows_are_rounded_to_the_same_bits_as_by_torch(format: torch.dtype, level: str) -> None:
    """Ties, values that are subnormal or overflow in half precision, a row of zeros; rows that are no numbers."""
    K, D, N = 2, 32, 40
    q, slots, held = draw(N, 4, D), torch.randperm(64)[:N], one_sequence(N)
    k, v = draw(N, K, D, seed=1), draw(N, K, D, seed=2)
    k[1] *= 1e-6
    k[2], k[3], k[4] = 0, torch.arange(K * D).view(K, D) / 2048 + 1, torch.arange(K * D).view(K, D) / 2**26
    v[5] *= 65536 / v[5].abs().max()
    v[6] = torch.arange(K * D).view(K, D) * 448 / (K * D - 1) - 200
    v[7, 1], v[8, 0, 3] = 1e-30, torch.nan
    got, wanted = empty(4, K, D, format), empty(4, K, D, format)
    write(flat(wanted), slots, k, v)
    with use_backend("cpu"):
        paged_step(q, k, v, flat(got), slots, got, *held)
    for name, *both in zip(BlockStore._fields, got, wanted, strict=True):
        if both[0] is None:
            continue
        mine, theirs = (x.flatten(0, 1) for x in both)
        if format == torch.float8_e4m3fn and name == "values":
            mine[slots[8], 0] = theirs[slots[8], 0] = 0  # codes of what is no number: their scale says so
        nan = theirs.float().isnan()
        assert mine.float().isnan().equal(nan), name
        assert bits(mine)[~nan].equal(bits(theirs)[~nan]), name


def one_sequence(N: int) -> tuple[Ragged, HeldBlocks]:
    return Ragged([N]), HeldBlocks(torch.arange(4)[None], lambda: torch.ones(1, N, 64), spans=torch.tensor([[N, N, 0]]))


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_rows_have_the_same_bits_alone_in_chunks_and_with_any_threads(format: torch.dtype) -> None:
    """A chunk goes through copies of the keys, and heads one by one; a single row through the cache itself."""
    q, store, rows, held = paged([(70, 1100, 0), (3, 40, 0), (4, 700, 300)], 8, 2, 64)
    store = held_as(format, store)
    assert held.spans is not None
    with use_backend("cpu"):
        together = paged_attention(q, store, rows, held)
        row = 0
        for b, (new, total, first) in enumerate(held.spans.tolist()):
            for begin, end in ((0, new), (0, 1), (1, min(new, 6)), (new - 2, new), (new // 3, new // 2 + 1)):
                spans = torch.tensor([[end - begin, total - new + end, first]])
                part = HeldBlocks(held.tables[b : b + 1].contiguous(), lambda: held.visible, spans=spans)
                for count in (1, 3, 8):
                    with threads(count):
                        alone = paged_attention(q[row + begin : row + end], store, Ragged([end - begin]), part)
                    assert alone.equal(together[row + begin : row + end]), (b, begin, end, count)
            row += new


@pytest.mark.skipif("avx512" not in levels(), reason="this processor has one vector instruction set")
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_both_vector_instruction_sets_attend_with_the_same_bits(format: torch.dtype) -> None:
    q, store, rows, held = paged([(30, 300, 0), (1, 520, 3)], 6, 2, 48)
    store = held_as(format, store)
    with use_backend("cpu"):
        wanted = paged_attention(q, store, rows, held)
        with opened().at_level("avx2"):
            assert paged_attention(q, store, rows, held).equal(wanted)


def test_a_cache_it_cannot_read_is_refused() -> None:
    q, store, rows, held = paged([(1, 20, 0)], 4, 2, 16)
    for bad, reason in (
        (BlockStore(store.keys.double(), store.values.double()), "the cache holds torch.float64"),
        (BlockStore(store.keys.half(), store.values), "the cache holds torch.float16 and torch.float32"),
        (store._replace(key_scale=torch.ones(1)), "codes have scales"),
        (BlockStore(store.keys.transpose(0, 1).contiguous().transpose(0, 1), store.values), "not contiguous"),
    ):
        with use_backend("cpu"), pytest.raises(BackendError, match=reason):
            paged_attention(q, bad, rows, held)


def test_torch_takes_prompts_where_there_are_no_vector_instructions() -> None:
    q, store, rows, held = paged([(17, 20, 0)], 4, 2, 16)
    few = paged([(16, 20, 0)], 4, 2, 16)
    for name in levels():
        with opened().at_level(name):
            assert cpu.rather_not(*few) is None
            assert (cpu.rather_not(q, store, rows, held) is None) == (name != "plain")
