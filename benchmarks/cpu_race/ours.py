"""Our engine's side: greedy answers, from the prompt to the chosen token as a server runs it.

A long context is not computed but put into the prefix cache: random keys and values, in memory that is really there.
Reading 32K tokens would take longer than all measurements together, and what decoding costs behind them is the same.
"""

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu_race.side import BATCH, Answer, Asked, by_steps
from ling.config.engine import EngineConfig
from ling.engine.blocks import BlockPool, extend_digests
from ling.engine.build import build, describe, load
from ling.engine.cache import PagedCache
from ling.engine.core import Engine
from ling.engine.request import SamplingParams
from ling.model import CausalLM
from ling.model.moe import SparseMoe
from ling.tokenizer import Tokenizer
from ling.version import __version__

_BLOCK = 16
_MORE_BLOCKS = 32
"""Of each answer, beside the blocks of the longest context."""
_COUNTED_PROMPT = 8


def start(
    model: str, *, threads: int, length: int, streams: int, vocabulary: int, pages: str, cache: str, shortlist: bool
) -> tuple[dict[str, Any], Answer]:
    torch.set_num_threads(threads)
    begin = time.perf_counter()
    loaded, tokenizer = load(model, pages=pages)  # type: ignore[arg-type]
    load_seconds = time.perf_counter() - begin
    engine = build(
        loaded, tokenizer,
        EngineConfig(
            max_model_len=length, max_num_seqs=streams, max_num_batched_tokens=max(BATCH, 4 * streams),
            block_size=_BLOCK, num_blocks=-(-length // _BLOCK) + streams * _MORE_BLOCKS, drafting="none",
            kv_cache_dtype=cache, head_shortlist=shortlist,  # type: ignore[arg-type]
        ),
    )  # fmt: skip
    fill(engine.runner.cache)
    answer = by_steps(OurSteps(engine), vocabulary)

    def answer_all(asked: Asked) -> dict[str, Any]:
        if asked["do"] == "experts":
            return {"unique": round(unique_experts(loaded, tokenizer, asked["streams"], asked["tokens"]), 1)}
        return answer(asked) | {"memory_gib": _memory_gib()}

    told = {"version": __version__, "engine": describe(engine), "load_seconds": round(load_seconds, 2)}
    return told, answer_all


class OurSteps:
    """Our engine as `Steps`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, name: str, ids: list[int], *, known: bool) -> None:
        if known:
            remember(self._engine.blocks, ids)
        self._engine.add(name, ids, SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))

    def step(self) -> Collection[str]:
        deltas = self._engine.step()
        assert all(len(d.token_ids) == 1 for d in deltas), [d.error for d in deltas]
        return [d.request_id for d in deltas]

    def drop(self, names: list[str]) -> None:
        for name in names:
            self._engine.abort(name)
        tidy(self._engine.blocks)


def unique_experts(model: CausalLM, tokenizer: Tokenizer, streams: int, tokens: int) -> float:
    """Return how many routed experts a layer reads per step, over `tokens` steps of `streams` random prompts.

    Another engine over the same weights is asked: whoever looks into layers has them run one by one.
    """
    counts: list[int] = []
    hooks = [
        module.register_forward_hook(lambda _m, _x, out: counts.append(int((out[1].counts > 0).sum())))
        for module in model.modules()
        if isinstance(module, SparseMoe)
    ]
    try:
        length = _COUNTED_PROMPT + tokens + 1
        sizes = EngineConfig(
            max_model_len=length, max_num_seqs=streams, num_blocks=streams * -(-length // _BLOCK), drafting="none"
        )
        steps = OurSteps(Engine(model, tokenizer, sizes))
        draw = torch.Generator().manual_seed(streams)
        names = [f"{i}" for i in range(streams)]
        for name in names:
            ids = torch.randint(model.config.vocab_size, (_COUNTED_PROMPT,), generator=draw).tolist()
            steps.add(name, ids, known=False)
        assert len(steps.step()) == streams, streams  # prompts are short enough to be read in one step
        counts.clear()
        for _ in range(tokens):
            steps.step()
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts) / len(counts) if counts else 0.0


@torch.no_grad()
def fill(cache: PagedCache) -> None:
    """Put random keys and values into every block; memory that was never written would read as one page of zeros."""
    for held in (cache.keys, cache.values):
        for layer in held:
            for block in layer:
                block.copy_(_drawn(block.shape))
    for scale in (cache.key_scale, cache.value_scale):
        if scale is not None:
            scale.fill_(1.0)


def remember(pool: BlockPool, ids: list[int]) -> None:
    """Offer free blocks, side by side in a tidy pool, as those of `ids`."""
    digests: list[bytes] = []
    extend_digests(digests, ids, pool.block_size, salt="")
    blocks = [pool.take() for _ in digests]
    for block, digest in zip(blocks, digests, strict=True):
        pool.publish(block, digest, with_drafting=False)
    pool.release(blocks)


def tidy(pool: BlockPool) -> None:
    """Have a pool whose blocks are all free know nothing, and give blocks in order, as at its start."""
    pool.release(sorted(pool.take() for _ in range(pool.num_free)))


_DRAWN: dict[torch.Size, torch.Tensor] = {}


def _drawn(shape: torch.Size) -> torch.Tensor:
    if shape not in _DRAWN:
        _DRAWN[shape] = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return _DRAWN[shape]


def _memory_gib() -> dict[str, float]:
    """Return the GiB of this process that are its own, and those that are pages of files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        name: round(int(lines[key].split()[0]) / 2**20, 2) for name, key in (("own", "RssAnon"), ("files", "RssFile"))
    }
