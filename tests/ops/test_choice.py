"""Choosing a token per row: noise that is a function, and kernels that choose what the reference chooses."""

import random

import pytest
import torch
from tests.ops.cpu.weights import levels
from torch import Tensor

from ling.ops.backend import use_backend
from ling.ops.choice import choose_tokens, gumbel_noise
from ling.ops.cpu.library import opened


def noise_of(key: int, ids: Tensor) -> Tensor:
    return gumbel_noise(torch.full_like(ids, key), ids)


def keys(count: int) -> list[int]:
    """Return keys of 64 bits, more than half of which are no int64."""
    rng = random.Random(count)
    return [rng.getrandbits(64) | (1 << 63 if i % 2 else 0) for i in range(count)]


def test_noise_is_a_function_of_its_arguments_with_gumbel_moments() -> None:
    ids = torch.arange(200_000)
    noise = noise_of(3, ids)
    assert torch.equal(noise, noise_of(3, ids))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(1.6449, rel=0.02)
    for other in (4, -3, 2**62):
        assert abs(torch.corrcoef(torch.stack([noise, noise_of(other, ids)]))[0, 1].item()) < 0.01
    assert noise.max() < 17.4  # what choices take for granted
    assert noise.max() - noise.min() < 20.5


def test_the_noise_of_a_token_does_not_depend_on_which_others_are_asked_for() -> None:
    whole = noise_of(7, torch.arange(1000))
    some = torch.tensor([3, 999, 512, 4, 77])
    torch.testing.assert_close(noise_of(7, some), whole[some], atol=2e-6, rtol=0)


def test_leaving_out_hopeless_tokens_changes_no_choice() -> None:
    logits = torch.randn(300, 400, generator=torch.Generator().manual_seed(0)) * 12
    ids = torch.arange(400)
    slow = [int((own + noise_of(i, ids)).argmax()) for i, own in enumerate(logits)]
    with use_backend("reference"):
        assert choose_tokens(logits, [1.0] * 300, range(300)) == slow


@pytest.mark.parametrize("level", ["avx512", "avx2", "plain"])
@pytest.mark.parametrize("width", [1, 15, 16, 33, 2048])
def test_kernels_choose_what_the_reference_chooses(level: str, width: int) -> None:
    if level not in levels():
        pytest.skip(f"this processor has no {level}")
    N = 120
    generator = torch.Generator().manual_seed(width)
    spread = torch.tensor([0.0, 0.3, 3.0, 30.0]).repeat(N // 4)[:, None]
    logits = torch.randn(N, width, generator=generator) * spread
    logits[torch.rand(N, width, generator=generator) < 0.1] = -torch.inf
    logits[-1] = -torch.inf
    temperatures = [(0.0, 0.01, 0.7, 2.0)[i // 4 % 4] for i in range(N)]
    with use_backend("reference"):
        expected = choose_tokens(logits, temperatures, keys(N))
    with opened().at_level(level), use_backend("cpu"):
        assert choose_tokens(logits, temperatures, keys(N)) == expected
        for i in (0, 7, N - 1):  # alone as among others
            assert choose_tokens(logits[i : i + 1], temperatures[i : i + 1], keys(N)[i : i + 1]) == [expected[i]]


def test_of_equal_logits_the_first_is_the_most_likely() -> None:
    logits = torch.zeros(2, 40)
    logits[1, [17, 30]] = 1.0
    for backend in ("reference", "cpu"):
        with use_backend(backend):
            assert choose_tokens(logits, [0.0, 0.0], [0, 0]) == [0, 17]
