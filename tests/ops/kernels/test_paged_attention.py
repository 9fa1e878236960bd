"""The kernels of decoding attention."""

import pytest
import torch
from tests.ops.kernels.comparing import draw, tolerance
from torch import Tensor

from ling.ops import paged_attention as op
from ling.ops.attention import visible_keys
from ling.ops.backend import use_backend
from ling.ops.paged_attention import BlockStore, HeldBlocks
from ling.ops.ragged import Ragged
from ling.ops.triton import paged_attention
from ling.testing.tolerances import assert_close

A, K, D, P, BLOCKS = 6, 2, 16, 8, 40


def store(dtype: torch.dtype, quantised: bool) -> BlockStore:
    keys, values = (draw(seed, BLOCKS, P, K, D).to(dtype) for seed in (1, 2))
    if not quantised:
        return BlockStore(keys, values)
    scales = [x.float().abs().amax(-1) / 448 for x in (keys, values)]
    codes = [(x.float() / s[..., None]).to(torch.float8_e4m3fn) for x, s in zip((keys, values), scales, strict=True)]
    return BlockStore(codes[0], codes[1], scales[0], scales[1])


def hold(new: list[int], held: list[int], first: list[int]) -> tuple[Ragged, HeldBlocks]:
    device = torch.get_default_device()
    width = -(-max(held) // P)
    order = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(0), device="cpu").to(device)
    tables = torch.stack([order[i : i + width] for i in range(len(new))])  # blocks are shared, as prefixes are
    spans = torch.tensor([new, held, first]).t().contiguous()

    def see() -> Tensor:
        visible = visible_keys(spans[:, 0], spans[:, 1], max(new), width * P)
        return visible & (torch.arange(width * P) >= spans[:, 2:])[:, None]

    return Ragged(new, device), HeldBlocks(tables, see, spans=spans)


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_attend_to_what_the_reference_lets_them_see(
    dtype: torch.dtype, quantised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths around a block's and a part's, several new rows, and a window that leaves whole parts unseen."""
    monkeypatch.setattr(paged_attention, "_CHUNK", 64)
    rows, held = hold(new=[1, 3, 1, 2], held=[1, 67, 200, 130], first=[0, 0, 70, 128])
    q, kept = draw(0, rows.total, A, D, dtype=dtype), store(dtype, quantised)
    with use_backend("triton"):
        got = op.paged_attention(q, kept, rows, held)
    with use_backend("reference"):
        exact = op.paged_attention(q, kept, rows, held)
    assert got.dtype == dtype
    assert_close(got, exact, tolerance(dtype))


def test_a_row_does_not_depend_on_how_long_others_are() -> None:
    q, kept = draw(0, 2, A, D), store(torch.float32, False)
    rows, held = hold(new=[1, 1], held=[70, 300], first=[0, 0])
    with use_backend("triton"):
        both = op.paged_attention(q, kept, rows, held)
        alone_rows, alone = hold(new=[1], held=[70], first=[0])
        assert torch.equal(op.paged_attention(q[:1], kept, alone_rows, alone), both[:1])
