"""`batch_invariant`: a request's tokens and log-probabilities are the same bits whatever else happens."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ling.checkpoint import load_model, save_model
from ling.checkpoint.save import ExportFormat
from ling.engine import invariance
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams
from ling.errors import ConfigError
from ling.ops.backend import use_backend
from ling.ops.cpu import library
from ling.ops.moe import mix_experts
from ling.ops.paged_attention import BlockStore, HeldBlocks, paged_attention
from ling.ops.ragged import Ragged
from ling.ops.router import count_experts
from ling.testing.models import tiny_model
from ling.testing.text import IdTokenizer
from ling.testing.tolerances import SUM_ORDER, assert_close

MODEL = tiny_model(seed=3)


def llm(**options) -> LLM:
    given = {"batch_invariant": True, "block_size": 4, "drafting": "none", **options}
    return LLM(MODEL, IdTokenizer(128), **given)


def prompts(count: int) -> list[list[int]]:
    generator = random.Random(5)
    shared = [generator.randrange(5, 120) for _ in range(12)]
    return [shared[: 4 * (i % 4)] + [generator.randrange(5, 120) for _ in range(1 + i)] for i in range(count)]


def params(i: int) -> SamplingParams:
    kinds = [{"temperature": 0}, {"temperature": 0.9}, {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.1}]
    return SamplingParams(max_tokens=12, ignore_eos=True, seed=i, logprobs=3, **kinds[i % 3])  # type: ignore[arg-type]


def bits(engine: LLM, chosen: list[int]) -> list[tuple]:
    """Return tokens and every reported log-probability, exactly."""
    all_prompts = prompts(32)
    done = engine.generate([all_prompts[i] for i in chosen], [params(i) for i in chosen])
    return [(tuple(o.outputs[0].token_ids), tuple(map(tuple, map(dict.items, o.outputs[0].logprobs)))) for o in done]


ASKED = [0, 1, 2, 7, 20, 31]


@pytest.fixture(scope="module", params=["kernels", "padding"], autouse=True)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """How the promise is kept: by kernels with one order of operations, or by padding a library's products."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "padding":
            patch.setattr(library, "library", lambda: None)
        yield request.param


@pytest.fixture(scope="module")
def alone(way: str) -> list[tuple]:
    engine = llm(enable_prefix_caching=False)
    return [bits(engine, [i])[0] for i in ASKED]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 32, "max_num_seqs": 8, "num_speculative_tokens": 0},  # prompts in chunks
        {"num_blocks": 64, "max_num_seqs": 32},  # preemption
        {"drafting": "mtp", "num_speculative_tokens": 3, "adaptive_drafts": False},
        {"drafting": "mtp", "num_blocks": 64},
        {"drafting": "ngram", "max_num_seqs": 5},
    ],
    ids=["batch of 32", "chunks", "preemption", "drafts", "drafts and preemption", "drafts from the text"],
)
def test_the_bits_of_a_request_do_not_depend_on_anything_else(alone: list[tuple], options: dict, way: str) -> None:
    engine = llm(**options)
    assert engine.engine.runner.pads == (way == "padding")
    together = bits(engine, list(range(32)))
    assert [together[i] for i in ASKED] == alone
    if "num_blocks" in options:
        assert engine.stats.preemptions > 0
    again = bits(engine, ASKED)  # their prompts are in the prefix cache now
    assert engine.stats.cached_tokens > 0
    assert again == alone


def test_a_cache_of_codes_keeps_the_promise_too() -> None:
    """Kernels read codes where they lie; padded rows have them turned into values first, all of them alike."""
    options = {"kv_cache_dtype": "fp8", "enable_prefix_caching": False}
    assert bits(llm(**options), list(range(32)))[31] == bits(llm(**options), [31])[0]


def test_packed_weights_keep_it_beside_routers_in_bfloat16(tmp_path: Path) -> None:
    save_model(tiny_model(seed=3, num_hidden_layers=2), tmp_path / "tiny", export=ExportFormat(precision="bfloat16"))
    model = load_model(tmp_path / "tiny", weights="int8")
    assert model.model.layers[1].mlp.gate.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    engine = LLM(model, IdTokenizer(128), batch_invariant=True, block_size=4, drafting="none")
    assert bits(engine, [0, 3])[1] == bits(engine, [3])[0]


def test_the_promise_is_worth_making() -> None:
    """Without it, some bits do depend on the batch: the test above can fail."""
    plain = llm(batch_invariant=False)
    assert bits(plain, list(range(32)))[31] != bits(llm(batch_invariant=False), [31])[0]


def test_a_machine_whose_products_depend_on_the_batch_is_refused(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def uneven(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x @ weight.T + 1e-6 * (len(x) > 64)

    monkeypatch.setattr(invariance, "linear", uneven)
    if way == "kernels":
        _ = llm().engine  # nothing there is a library's
        return
    with pytest.raises(ConfigError, match=r"batch invariance does not hold on this machine with \d+ thread"):
        _ = llm().engine


def test_the_invariant_twins_agree_with_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    x, gate_up, down = make(11, 16), make(6, 24, 16), make(6, 16, 12)
    ids = torch.stack([torch.randperm(5, generator=generator)[:2] for _ in range(11)])  # the sixth expert stays empty
    mix = torch.rand(11, 2, generator=generator)
    args = (x, ids, mix, count_experts(ids, 6), gate_up, down)
    rows = Ragged([3, 1, 5])
    visible = torch.rand(3, 5, 12, generator=generator) < 0.6
    visible[..., 0] = True
    held = HeldBlocks(torch.tensor([[4, 1, 0], [2, 0, 0], [3, 5, 6]]), lambda: visible)
    attention = (make(9, 4, 8), BlockStore(make(7, 4, 2, 8), make(7, 4, 2, 8)), rows, held)
    for op, given in ((mix_experts, args), (paged_attention, attention)):
        results = []
        for backend in ("reference", "torch", "invariant"):
            with use_backend(backend):
                results.append(op(*given))
        assert_close(results[1], results[0], SUM_ORDER)
        assert_close(results[2], results[0], SUM_ORDER)
