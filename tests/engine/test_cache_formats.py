"""What the cache holds keys and values as: how close answers stay, what it costs; nothing else changes them."""

import math

import pytest
import torch

from ling.config.engine import CacheDtype
from ling.engine.build import describe
from ling.engine.cache import PagedCache
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams
from ling.testing.models import tiny_config, tiny_model
from ling.testing.text import IdTokenizer

MODEL = tiny_model(seed=3)
TEXT = " ".join(str(5 + i % 60) for i in range(60))


def llm(held: CacheDtype, **options: object) -> LLM:
    return LLM(MODEL, IdTokenizer(128), kv_cache_dtype=held, block_size=4, drafting="none", **options)  # type: ignore[arg-type]


def log_probabilities(engine: LLM, text: str = TEXT) -> torch.Tensor:
    """Of the prompt in chunks, so that most of it is seen through the cache."""
    (done,) = engine.generate([text], SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0))
    assert done.prompt_logprobs is not None
    return torch.tensor([next(iter(x.values())).logprob for x in done.prompt_logprobs[1:] if x is not None])


@pytest.mark.parametrize(
    ("held", "most", "share"), [("float16", 1e-3, 0.5), ("bfloat16", 1e-2, 0.5), ("fp8", 0.05, 0.45)]
)
def test_rounded_keys_and_values_stay_close_and_are_smaller(held: CacheDtype, most: float, share: float) -> None:
    exact, rounded = llm("auto"), llm(held)
    sizes = [engine.engine.sizes.bytes_per_block for engine in (exact, rounded)]
    assert sizes[1] <= share * sizes[0]
    off = (log_probabilities(rounded) - log_probabilities(exact)).abs()
    assert off.max() > 0
    assert off.mean() < most
    name = "fp8 with a scale" if held == "fp8" else held
    assert any(line.startswith("cache: ") and f" in {name}" in line for line in describe(rounded.engine))


@pytest.mark.parametrize("held", ["float16", "bfloat16", "fp8"])
def test_no_bit_depends_on_chunks_or_company(held: CacheDtype) -> None:
    """Whether the kernels write and read it or torch does, and however many rows come together."""
    alone = llm(held, batch_invariant=True, max_num_batched_tokens=64, max_num_seqs=4, num_speculative_tokens=0)
    among = llm(held, batch_invariant=True, max_num_batched_tokens=9, max_num_seqs=4, num_speculative_tokens=0)
    assert not alone.engine.runner.pads
    params = SamplingParams(max_tokens=8, temperature=0, logprobs=2, ignore_eos=True)
    others = [" ".join(map(str, range(9, 9 + 7 * i))) for i in (1, 2, 3)]
    (wanted,), (*_, got) = alone.generate([TEXT], params), among.generate([*others, TEXT], params)
    assert got.outputs[0].token_ids == wanted.outputs[0].token_ids
    assert got.outputs[0].logprobs == wanted.outputs[0].logprobs


@pytest.mark.parametrize("held", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_a_cache_begins_as_zeros_of_what_it_holds(held: torch.dtype) -> None:
    cache = PagedCache(tiny_config(), 3, 4, torch.float32, torch.device("cpu"), held=held)
    for x in (cache.keys, cache.values):
        assert x.dtype == held
        assert not x.view(torch.uint8).any()
    cache.keys.fill_(1)
    cache.wipe([1])
    assert cache.keys[:, 1].float().abs().sum() == 0
    assert cache.keys[:, 2].float().sum() == math.prod(cache.keys[:, 2].shape)
