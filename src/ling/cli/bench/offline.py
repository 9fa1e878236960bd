"""What `latency` and `throughput` share: an engine of one's own, random prompts, and a batch run to its end."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ling.cli.bench.prompts import RandomPrompts
from ling.errors import ConfigError

if TYPE_CHECKING:
    from ling.config.engine import Drafting
    from ling.engine.core import Engine
    from ling.engine.llm import LLM
    from ling.engine.request import SamplingParams

Request = tuple[list[int], "SamplingParams"]


@dataclass(slots=True)
class Run:
    """What running some requests took."""

    seconds: float = 0.0
    tokens: int = 0
    """Generated."""
    decode_seconds: float = 0.0
    """After every answer had its first token."""
    decode_steps: int = 0
    decode_tokens: int = 0
    failed: int = 0


def open_llm(
    model: Path | None, *, dtype: str, drafting: "Drafting", num_speculative_tokens: int, **options: Any
) -> "LLM":
    """Open a model for measuring; ConfigError if it has no room for the requests that are meant."""
    from ling.cli.models import open_model

    llm = open_model(
        model, dtype=dtype, drafting=drafting, num_speculative_tokens=num_speculative_tokens, **options
    )  # fmt: skip
    assert llm.engine is not None  # it is built when first needed
    return llm


def random_requests(
    llm: "LLM", count: int, *, input_len: int, output_len: int, range_ratio: float = 0.0, seed: int = 0
) -> list[Request]:
    """Return prompts of ordinary tokens, all different, whose answers have exactly the length that is asked for."""
    from ling.engine.request import SamplingParams

    ordinary = [i for i in range(llm.tokenizer.vocab_size) if not llm.tokenizer.is_special(i)]
    made = RandomPrompts(
        input_len=input_len, output_len=output_len, range_ratio=range_ratio, vocab_size=len(ordinary), seed=seed
    )
    requests: list[Request] = []
    for prompt in made.ids(count):
        ids = [ordinary[i] for i in prompt.content if isinstance(i, int)]
        params = SamplingParams(max_tokens=prompt.output_tokens, temperature=0, ignore_eos=True)
        if len(ids) + prompt.output_tokens > llm.engine.max_model_len:
            raise ConfigError(
                f"{len(ids)} + {prompt.output_tokens} tokens do not fit into the model's context of "
                f"{llm.engine.max_model_len}; lower --input-len or --output-len"
            )
        requests.append((ids, params))
    return requests


def run_requests(engine: "Engine", requests: Sequence[Request], name: str, done: Any = lambda count: None) -> Run:
    """Run requests to their end, all handed over at once; `done` is told how many are finished."""
    run = Run()
    began: set[str] = set()
    finished = 0
    begin = time.perf_counter()
    for index, (ids, params) in enumerate(requests):
        engine.add(f"{name}-{index}", ids, params)
    decoding_since: float | None = None
    while engine.has_work:
        for delta in engine.step():
            run.tokens += len(delta.token_ids)
            run.decode_tokens += len(delta.token_ids) * (decoding_since is not None)
            if delta.token_ids:
                began.add(delta.request_id)
            if delta.finish_reason is not None:
                finished += 1
                run.failed += delta.finish_reason == "error"
        run.decode_steps += decoding_since is not None
        if decoding_since is None and len(began) == len(requests):
            decoding_since = time.perf_counter()
        done(finished)
    end = time.perf_counter()
    run.seconds = end - begin
    run.decode_seconds = end - decoding_since if decoding_since is not None else 0.0
    return run
