"""The model in the package with weights of 8 and 4 bits: how far it is from float32, and that it serves."""

from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ling.checkpoint import load_model
from ling.checkpoint.packing import MIXED
from ling.data.books import split_books
from ling.data.dialogues import heldout_set
from ling.engine.build import describe
from ling.engine.bundled import bundled_directory
from ling.engine.llm import LLM
from ling.engine.request import SamplingParams
from ling.errors import ConfigError
from ling.model import CausalLM
from ling.model.batch import pack
from ling.tokenizer import Tokenizer, encode_chat

WINDOW = 256
WINDOWS = 16


class Quality(NamedTuple):
    """Of one model on text that none was trained on, against float32."""

    perplexity_ratio: float
    kl_nats: float
    same_greedy_percent: float


@cache
def model(format: str) -> CausalLM:
    if format == "float32":
        return load_model(bundled_directory(), dtype=torch.float32).requires_grad_(False)
    return load_model(bundled_directory(), weights=MIXED if format == "mixed" else format)  # type: ignore[arg-type]


@cache
def texts() -> tuple[list[list[int]], list[list[int]]]:
    """Return held-out pages of books, and held-out conversations."""
    tokenizer = Tokenizer.from_directory(bundled_directory())
    held = (tokenizer.encode(text[: 16 * WINDOW], special=False)[:WINDOW] for text in split_books(1.0)[1])
    pages = [ids for ids in held if len(ids) == WINDOW][:WINDOWS]
    dialogues = [encode_chat(tokenizer, d.messages)[0][:WINDOW] for d in heldout_set("stories", 8, seed=1)]
    return pages, dialogues


@torch.inference_mode()
def log_probabilities(format: str, ids: list[int]) -> Tensor:
    tokens, positions, batch = pack([ids])
    return model(format).logits(model(format)(tokens, positions, batch).hidden).log_softmax(-1)


@cache
def measure(format: str, which: int) -> Quality:
    """Compare on `texts()[which]`."""
    excess = kl = same = count = 0.0
    for ids in texts()[which]:
        exact, got = log_probabilities("float32", ids)[:-1], log_probabilities(format, ids)[:-1]
        following = torch.tensor(ids[1:])[:, None]
        excess += float((exact - got).gather(1, following).sum())
        kl += float((exact.exp() * (exact - got)).sum())
        same += int((exact.argmax(1) == got.argmax(1)).sum())
        count += len(ids) - 1
    return Quality(float(torch.tensor(excess / count).exp()), kl / count, 100 * same / count)


@pytest.mark.parametrize(
    ("format", "perplexity", "nats"), [("int8", 1.01, 5e-3), ("mixed", 1.01, 0.04), ("int4", 1.05, 0.05)]
)
def test_held_out_text_is_hardly_less_likely(format: str, perplexity: float, nats: float) -> None:
    for which in (0, 1):
        quality = measure(format, which)
        print(format, quality)  # docs/guides/cpu.md quotes it: pytest -s
        assert quality.perplexity_ratio < perplexity, quality
        assert quality.kl_nats < nats, quality


def test_int8_agrees_on_99_of_100_greedy_tokens() -> None:
    """Every token after the true ones before it, in books and in conversations."""
    for which in (0, 1):
        quality = measure("int8", which)
        assert quality.same_greedy_percent >= 99, quality


def test_formats_may_differ_by_kind() -> None:
    mixed = load_model(bundled_directory(), weights={"experts": "int4", "head": "int8"})
    assert mixed.lm_head is not None
    assert mixed.lm_head.packed is not None
    layer = mixed.model.layers[2]
    assert layer.mlp.experts.packed[0].format == "int4"
    assert layer.mlp.shared_experts.up_proj.packed.format == "int4"
    assert layer.attention.dense.packed is None
    assert mixed.model.word_embeddings.weight.dtype == torch.bfloat16  # a table stays as published
    with pytest.raises(ConfigError, match="no weights are of kind embedding"):
        load_model(bundled_directory(), weights={"embedding": "int8"})


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_packed_answers_do_not_depend_on_the_batch_and_nothing_is_padded(format: str) -> None:
    tokenizer = Tokenizer.from_directory(bundled_directory())
    prompts = [ids[: 5 + 9 * i] for i, ids in enumerate(texts()[1][:5])]
    params = SamplingParams(temperature=0, max_tokens=12, logprobs=1)
    together = LLM(model(format), tokenizer, batch_invariant=True)
    assert not together.engine.runner.pads
    assert format in describe(together.engine)[0]
    alone = LLM(model(format), tokenizer, batch_invariant=True, drafting="none", enable_prefix_caching=False)
    for prompt, got in zip(prompts, together.generate(prompts, params), strict=True):
        (wanted,) = alone.generate([prompt], params)
        assert got.outputs[0].token_ids == wanted.outputs[0].token_ids
        assert got.outputs[0].logprobs == wanted.outputs[0].logprobs


def test_llm_packs_by_name_and_refuses_other_names() -> None:
    llm = LLM(bundled_directory(), quantization="int8", device="cpu")
    (done,) = llm.chat([{"role": "user", "content": "Hello!"}], SamplingParams(temperature=0, max_tokens=8))
    assert done.outputs[0].text
    with pytest.raises(ConfigError, match=r"quantization must be fp8, int8, int4, mixed, .* or left out, got awq"):
        LLM(bundled_directory(), quantization="awq")
