"""Kernels of decoding at Ling-mini's sizes: what to run, and the bytes that must be read for it."""

import torch

from benchmarks import gpu_items
from benchmarks import gpu_kernel_cases as cases
from benchmarks.gpu_kernel_cases import Work, bytes_of, random
from ling.ops.paged_attention import BlockStore, HeldBlocks
from ling.ops.ragged import Ragged
from ling.ops.triton import moe_decode, paged_attention

SEQUENCES, HELD, BLOCK = 8, 4096, 64


def decoding_attention() -> Work:
    """One new token each of 8 sequences of 4,096."""
    blocks = HELD // BLOCK
    store = BlockStore(*(random(SEQUENCES * blocks, BLOCK, cases.K, cases.D) for _ in "kv"))
    tables = torch.randperm(SEQUENCES * blocks, device=gpu_items.DEVICE).view(SEQUENCES, blocks)
    spans = torch.tensor([[1, HELD, 0]] * SEQUENCES, device=gpu_items.DEVICE)
    rows, held = Ragged([1] * SEQUENCES, gpu_items.DEVICE), HeldBlocks(tables, lambda: tables, spans=spans)
    q = random(SEQUENCES, cases.A, cases.D)
    paged_attention.forward(q, store, rows, held)  # makes the indices of `rows`, which no graph may
    return lambda: paged_attention.forward(q, store, rows, held), bytes_of(store.keys, store.values)


def experts_of_one_token() -> Work:
    x, mix = random(1, cases.H), torch.rand(1, cases.k, device=gpu_items.DEVICE)
    gate_up, down = random(cases.E, 2 * cases.F, cases.H), random(cases.E, cases.H, cases.F)
    chosen = torch.randperm(cases.E, device=gpu_items.DEVICE)[None, : cases.k].contiguous()
    return lambda: moe_decode.mix_few(x, chosen, mix, gate_up, down), cases.k * bytes_of(gate_up[0], down[0])


DECODING = [decoding_attention, experts_of_one_token]
