"""Our engine beside llama.cpp on a CPU: random models of the same shape and bits.

    python -m benchmarks.cpu_vs_llamacpp                            10 layers, both resident, short bursts in turns
    python -m benchmarks.cpu_vs_llamacpp --layers 0 --alternate --rounds 2 --scratch D --make
    python -m benchmarks.cpu_vs_llamacpp --layers 0 --alternate --rounds 2 --scratch D
                                                                    full size, one engine at a time, A-B-A-B
    python -m benchmarks.cpu_vs_llamacpp --layers 3 --bits 4 --parts decode --contexts 0 --rounds 2

Ours is int8 beside Q8_0, and int4 with the head in int8 beside Q4_0, whose head our writer keeps in Q8_0: equal bits.

    decode    one answer, at each of --contexts          prefill   a prompt of 512 tokens
    streams   8 answers at once against one, with the experts that a step reads
    best      int4: another llama.cpp beside, whose file has the head that its own quantiser gives Q4_0
    curve     ours alone: Ling-mini beside the dense shape of qwen3_8b, at each of --curve-contexts
    load      starts of a prepared model whose files are in the page cache
    peers     ours beside vLLM and transformers' glm4_moe in bfloat16, at --peer-layers

The side that begins changes with every round where all are resident; whoever waits is stopped. Read bandwidth is
measured around every burst, with as many threads, and a step's GB/s are its weights and its cache: each expert that is
read, once; the embedding's rows not at all. All read the whole head, unless --shortlist lets ours choose as it does
when it serves; then ours with the whole head meets them too. Results are saved after every round: run the parts that
are missing with --parts, and they are put beside those of the last run with the same settings.
"""

import argparse
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu_race.contenders import BEST_Q4, Contender, prepare, remove
from benchmarks.cpu_race.figures import streams_part, verdicts
from benchmarks.cpu_race.meeting import Turns, meet
from benchmarks.cpu_race.processes import running, warm
from benchmarks.cpu_race.record import Record
from benchmarks.cpu_race.side import Asked
from benchmarks.random_mini import shape
from benchmarks.results import describe_machine

FORMS = {8: ("int8", "q8_0"), 4: ("int4,head=int8", "q4_0")}
BESIDE = ("decode", "prefill", "streams", "best")
PARTS = (*BESIDE, "curve", "load", "peers")
PROMPT, STREAMS, STREAM_CONTEXT = 512, 8, 16
LOADS = 3
SETTINGS = ("layers", "threads", "pages", "cache", "alternate")
"""What must be the same for results of two runs to stand beside each other."""


@dataclass
class Stage:
    """Contenders that meet, the first of them ours; without questions it is only started."""

    key: str
    contenders: dict[str, Contender]
    asked: dict[str, Asked] = field(default_factory=dict)


def main() -> None:
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that no side is left behind
    torch.set_num_threads(given.threads)
    settings = {name: getattr(given, name) for name in SETTINGS} | ({"shortlist": True} if given.shortlist else {})
    record = Record("cpu-vs-llamacpp" + (f"-{given.name}" if given.name else ""), settings, given.out)
    with ExitStack() as stack:
        scratch = given.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cpu-")))
        scratch.mkdir(parents=True, exist_ok=True)
        for stages in (*(stages_of(bits, scratch, given) for bits in given.bits), peers(scratch, given)):
            models = [contender for stage in stages for contender in stage.contenders.values()]
            prepare(models, scratch, workers=given.threads)
            for stage in [] if given.make else stages:
                run(stage, given, record)
            if given.scratch is None:
                remove(models)
    if not given.make:
        print(describe_machine())
        print("\n".join(verdicts(record.numbers)))
        print(record.path.name)


def arguments(words: list[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=10, help="0: all")
    parser.add_argument("--dense-layers", type=int, help="of qwen3_8b; left out: as many as --layers")
    parser.add_argument("--peer-layers", type=int, default=3)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4], choices=sorted(FORMS))
    parser.add_argument("--parts", nargs="+", default=["decode", "prefill", "streams"], choices=PARTS)
    parser.add_argument("--contexts", type=int, nargs="+", default=[0])
    parser.add_argument("--curve-contexts", type=int, nargs="+", default=[0, 2048, 8192, 32640])
    parser.add_argument("--tokens", type=int, default=32, help="steps of a burst")
    parser.add_argument("--curve-tokens", type=int, default=12, help="steps of a burst of curve")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2, help="bursts of a part in a round of --alternate")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--pages", default="mapped", help="ours: mapped, copied or locked")
    parser.add_argument("--cache", default="auto", help="ours: as ling serve --kv-cache-dtype")
    parser.add_argument("--shortlist", action="store_true", help="ours chooses by half of the head first, as it serves")
    parser.add_argument("--no-repack", action="store_true", help="llama.cpp reads weights as they lie in the file")
    parser.add_argument("--ours-alone", action="store_true")
    parser.add_argument("--alternate", action="store_true", help="one engine in memory at a time, its file read first")
    parser.add_argument("--make", action="store_true", help="only write the models")
    parser.add_argument("--scratch", type=Path, help="where models stay; left out: they are removed")
    parser.add_argument("--out", type=Path, help="where results go; left out: benchmarks/results")
    parser.add_argument("--name", help="put into the result's name")
    given = parser.parse_args(words)
    if given.make and given.scratch is None:
        parser.error("--make needs --scratch, where models stay")
    return given


# ---- who meets, and what they are asked ----


def stages_of(bits: int, scratch: Path, given: Any) -> list[Stage]:
    """Return what is compared at so many bits."""
    stages = []
    ours = contender_of("ling", "ling_mini", given.layers, bits, scratch, given)
    if set(given.parts) & {*BESIDE}:
        contenders = {"ling": ours}
        if given.shortlist:
            contenders["ling, whole head"] = replace(ours, options=ours.options | {"shortlist": False})
        if not given.ours_alone:
            contenders["llama.cpp"] = contender_of("llama.cpp", "ling_mini", given.layers, bits, scratch, given)
        if "best" in given.parts and bits == 4:
            best = contender_of("llama.cpp", "ling_mini", given.layers, bits, scratch, given, BEST_Q4)
            contenders["llama.cpp, head in Q6_K"] = best
        stages.append(Stage(f"int{bits}", contenders, questions(given)))
    if "curve" in given.parts:
        dense = contender_of("ling", "qwen3_8b", given.dense_layers or given.layers, bits, scratch, given)
        stages.append(Stage(f"int{bits} curve", {"sparse": ours, "dense": dense}, curve(given)))
    if "load" in given.parts:
        stages.append(Stage(f"int{bits} load", {"ling": ours}))
    return stages


def contender_of(
    engine: str, preset: str, layers: int, bits: int, scratch: Path, given: Any, form: str | None = None
) -> Contender:
    form = form or FORMS[bits][engine != "ling"]
    full = shape(preset, None).num_hidden_layers
    config = shape(preset, min(layers, full) if layers else full)
    model = scratch / f"{preset}-{config.num_hidden_layers}-{form}{'' if engine == 'ling' else '.gguf'}"
    own = {"pages": given.pages, "cache": given.cache, "shortlist": given.shortlist}
    own = own if engine == "ling" else {"repack": not given.no_repack}
    return Contender(engine, model, config, form, {"threads": given.threads} | own)


def questions(given: Any) -> dict[str, Asked]:
    """Return what is asked of us and of llama.cpp, by the name of the part."""
    asked: dict[str, Asked] = {}
    if set(given.parts) & {"decode", "best"}:
        asked |= {f"decode at {context}": decoding(context, given.tokens) for context in given.contexts}
    if set(given.parts) & {"prefill", "best"}:
        asked[f"prefill {PROMPT}"] = {"do": "prefill", "tokens": PROMPT}
    if "streams" in given.parts:
        asked |= {streams_part(n): decoding(STREAM_CONTEXT, given.tokens, n) for n in (1, STREAMS)}
    return asked


def curve(given: Any) -> dict[str, Asked]:
    return {f"decode at {context}": decoding(context, given.curve_tokens) for context in given.curve_contexts}


def decoding(context: int, tokens: int, streams: int = 1) -> Asked:
    return {"do": "decode", "context": context, "tokens": tokens, "streams": streams}


def peers(scratch: Path, given: Any) -> list[Stage]:
    """Return ours in int8 beside others in bfloat16: they have no quantised sparse layers for a CPU."""
    if "peers" not in given.parts:
        return []
    ours = contender_of("ling", "ling_mini", given.peer_layers, 8, scratch, given)
    model = scratch / f"ling_mini-{given.peer_layers}-for-vllm"
    options = {"threads": given.threads, "dtype": "bfloat16"}
    contenders = {"ling": ours}
    for name, eager in (("vllm", False), ("vllm, eager", True)):
        own = {"eager": eager, "scratch": str(scratch / "vllm-cache")}
        contenders[name] = Contender("vllm", model, ours.config, "bfloat16", options | own)
    contenders["transformers"] = Contender("transformers", model, ours.config, "bfloat16", options)
    asked = {"decode at 0": decoding(0, given.tokens), f"prefill {PROMPT}": {"do": "prefill", "tokens": PROMPT}}
    return [Stage(f"peers, {given.peer_layers} layers", contenders, asked)]


# ---- running ----


def run(stage: Stage, given: Any, record: Record) -> None:
    if stage.asked:
        turns = Turns(given.alternate, given.rounds, given.repeats)
        meet(stage.contenders, stage.asked, turns, lambda found: record.keep(stage.key, found))
        return
    ours = stage.contenders["ling"]
    seconds: dict[str, list[float]] = {"import_seconds": [], "load_seconds": []}
    sizes = {"length": PROMPT, "streams": 1, "vocabulary": ours.config.vocab_size}
    warm(ours.model)
    for _ in range(LOADS):
        with running(ours.engine, ours.model, ours.options | sizes) as side:
            for name, values in seconds.items():
                values.append(side.told[name])
        record.keep(stage.key, seconds)


if __name__ == "__main__":
    main()
