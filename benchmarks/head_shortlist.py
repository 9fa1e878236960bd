"""Choices that read half of the head first, beside choices that read all of it: the same bits of the same tokens.

    python -m benchmarks.run head_shortlist
    python -m benchmarks.head_shortlist --models DIR ...    steps of whole models too, of benchmarks/random_mini.py

    head   Ling-mini's head of random weights by itself, for a few rows, by what they choose by
    steps  the engine's own, answers at once, four with the whole head and four without in turns
    text   the model in the package in int8: of its answers, how much of a trained head is read again

Random weights are the hard case: a token that stands out leaves others out of reach, and of these none does by much.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import ling.engine.head
from benchmarks.cpu_race.bursts import bandwidth
from benchmarks.results import describe_machine, save
from ling.checkpoint import load_model
from ling.checkpoint.packing import read_weights
from ling.checkpoint.pages import anonymous_pages, to_empty_in_huge_pages
from ling.config.engine import EngineConfig
from ling.data.dialogues import heldout_set
from ling.engine.build import build, load
from ling.engine.bundled import bundled_directory
from ling.engine.core import Engine
from ling.engine.request import SamplingParams
from ling.model.linear import Linear
from ling.ops.cpu.shortlist import Shortlist, Wanted
from ling.ops.linear import linear
from ling.ops.packed import PackedWeight, quantize
from ling.tokenizer import Tokenizer, encode_chat

V, H, STD = 157_184, 2_048, 0.006
ROWS, TURNS = (1, 2, 4, 8), 40
ANSWERS, STEPS, IN_A_ROW = (1, 2, 4), 240, 4
CHOICES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0}, "temperature 1": {"temperature": 1.0},
    "top-k 20": {"temperature": 1.0, "top_k": 20},
}  # fmt: skip
WANTED = {"greedy": Wanted(1), "temperature 1": Wanted(0, 1.0, 7), "top-k 20": Wanted(20)}
DIALOGUES, MAX_TOKENS = 24, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="prepared checkpoints, for `steps`")
    given = parser.parse_args()
    numbers: dict[str, Any] = {"threads": torch.get_num_threads()}
    with torch.inference_mode():
        numbers["head"] = head()
    for directory in given.models:
        numbers[f"steps, {directory.name}"] = steps(directory)
    numbers["text"] = text()
    print(json.dumps(numbers, indent=2))
    print(describe_machine())
    print(save("head-shortlist", numbers).name)


def head() -> dict[str, Any]:
    """Return milliseconds of the logits of a few rows, whole and short, in turns; other rows in each turn."""
    weight = draw_head()
    room = torch.frombuffer(anonymous_pages(weight.codes.nbytes // 2), dtype=torch.uint8)
    known = Shortlist(weight, room)
    begin = time.perf_counter()
    Shortlist(weight, room)
    found: dict[str, Any] = {"sketch_ms": round(1e3 * (time.perf_counter() - begin), 1)}
    found |= {"mb": round(weight.nbytes / 1e6), "bandwidth_gb_per_s": [round(bandwidth(), 1)]}
    for rows in ROWS:
        for choice, wanted in WANTED.items():
            found[f"{rows} rows, {choice}"] = in_turns(known, [wanted] * rows)
        found["bandwidth_gb_per_s"].append(round(bandwidth(), 1))
    return found


def draw_head() -> PackedWeight:
    """Return normal weights as a model has them in memory: in huge pages."""
    with torch.device("meta"):
        layer = Linear(H, V)
        layer.keep_packed("int8")
    to_empty_in_huge_pages(layer)
    weight = layer.quantity()
    assert isinstance(weight, PackedWeight)
    drawn = quantize(torch.empty(V, H).normal_(0, STD, generator=torch.Generator().manual_seed(0)), "int8")
    weight.codes.copy_(drawn.codes)
    weight.scales.copy_(drawn.scales)
    return weight


def in_turns(known: Shortlist, wanted: list[Wanted]) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(len(wanted))
    seconds: list[list[float]] = [[], []]
    known.forget()
    for i in range(TURNS):
        x = torch.randn(len(wanted), H, generator=draw)
        logits = {}
        for which in (0, 1) if i % 2 else (1, 0):
            begin = time.perf_counter()
            logits[which] = known.logits(x, wanted) if which else linear(x, known.weight)
            seconds[which].append(time.perf_counter() - begin)
        stands = logits[1] > -torch.inf
        assert torch.equal(logits[1][stands], logits[0][stands])
    return compared(*seconds) | {"percent_read_again": round(100 * known.share_read_again, 2)}


def compared(whole: list[float], short: list[float]) -> dict[str, Any]:
    """Return medians, and how many times faster the short way is: of medians, and of first and third quartiles."""
    quartiles = [statistics.quantiles(seconds, n=4) for seconds in (whole, short)]
    return {
        "whole_ms": round(1e3 * quartiles[0][1], 2),
        "short_ms": round(1e3 * quartiles[1][1], 2),
        "ratio": round(quartiles[0][1] / quartiles[1][1], 3),
        "ratio_of_quartiles": [round(quartiles[0][i] / quartiles[1][i], 3) for i in (0, 2)],
    }


def steps(directory: Path) -> dict[str, Any]:
    """Return milliseconds of decoding steps of the engine, whole and short, in turns."""
    model, tokenizer = load(directory)
    engine = build(model, tokenizer, EngineConfig(max_model_len=512, max_num_seqs=max(ANSWERS), drafting="none"))
    found: dict[str, Any] = {"bandwidth_gb_per_s": [round(bandwidth(), 1)]}
    for choice, params in CHOICES.items():
        for count in ANSWERS:
            with answering(engine, count, params):
                found[f"{count} answers, {choice}"] = decoding(engine)
            found["bandwidth_gb_per_s"].append(round(bandwidth(), 1))
    return found


@contextmanager
def answering(engine: Engine, count: int, params: dict[str, Any]) -> Iterator[None]:
    for i in range(count):
        engine.add(f"{i}", list(range(100 + 50 * i, 116 + 50 * i)), SamplingParams(
            max_tokens=STEPS + 50, ignore_eos=True, seed=i, **params))  # fmt: skip
    while engine.num_waiting or any(s.is_prefilling for s in engine.scheduler.running):
        engine.step()
    yield
    for i in range(count):
        engine.abort(f"{i}")


def decoding(engine: Engine) -> dict[str, Any]:
    short = engine.runner.head
    assert short is not None
    seconds: list[list[float]] = [[], []]
    try:
        for i in range(STEPS):
            which = i // IN_A_ROW % 2
            engine.runner.head = short if which else None
            begin = time.perf_counter()
            engine.step()
            seconds[which].append(time.perf_counter() - begin)
    finally:
        engine.runner.head = short
    return compared(*seconds)


def text() -> dict[str, Any]:
    """Return, of greedy and other answers of the model in the package, what share of its tiles was read again."""
    ling.engine.head.LEAST_BYTES, ling.engine.head._JUDGED = 0, 10**9
    tokenizer = Tokenizer.from_directory(bundled_directory())
    prompts = [encode_chat(tokenizer, d.messages[:-1])[0] for d in heldout_set("stories", DIALOGUES, seed=1)]
    found: dict[str, Any] = {}
    for choice, params in CHOICES.items():
        tokens: list[list[list[int]]] = []
        for shortlist in (True, False):
            model = load_model(bundled_directory(), weights=read_weights("int8"))
            config = EngineConfig(max_num_seqs=1, drafting="none", head_shortlist=shortlist, max_model_len=512)
            engine = build(model.requires_grad_(False), tokenizer, config)
            tokens.append([answer(engine, ids, params) for ids in prompts])
            if shortlist:
                known = engine.runner.head and engine.runner.head._known
                assert known
                found[choice] = {"percent_read_again": round(100 * known.share_read_again, 2)}
        same = sum(a == b for a, b in zip(*tokens))
        found[choice] |= {"tokens": sum(map(len, tokens[0])), "answers": len(prompts), "answers_equal": same}
    return found


def answer(engine: Engine, ids: list[int], params: dict[str, Any]) -> list[int]:
    engine.add("one", ids, SamplingParams(max_tokens=MAX_TOKENS, seed=len(ids), **params))
    tokens: list[int] = []
    while engine.has_work:
        for delta in engine.step():
            tokens += delta.token_ids
    return tokens


if __name__ == "__main__":
    main()
