"""Our engine beside llama.cpp on a CPU: random models of the same shape and bits.

    python -m benchmarks.cpu_vs_llamacpp                            10 layers, both resident, short bursts in turns
    python -m benchmarks.cpu_vs_llamacpp --layers 0 --alternate --scratch D
                                                                    full size, one engine at a time, A-B-A-B
    python -m benchmarks.cpu_vs_llamacpp --layers 3 --bits 4 --parts decode --contexts 0 --rounds 2

Ours is int8 beside Q8_0, and int4 with the head in int8 beside Q4_0, whose head our writer keeps in Q8_0: equal bits.
Parts: decode (at each of --contexts), prefill (512 tokens), streams (8 requests at once against one, with the experts
that a step reads), dense (the same for our own qwen3_8b shape, beside its bytes). The side that begins changes with
every round; whoever waits is stopped. Read bandwidth is measured around every burst, with as many threads, and a step's
GB/s are its weights and its cache: each expert that is read, once; the embedding's rows not at all.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import ROOT, peer_python
from benchmarks.random_mini import make, shape
from benchmarks.results import describe_machine, save
from ling.checkpoint.gguf import plan_gguf
from ling.checkpoint.packing import read_weights
from ling.checkpoint.prepared import packed_bytes, packed_model
from ling.config import ModelConfig

FORMS = {8: ("int8", "q8_0"), 4: ("int4,head=int8", "q4_0")}
PARTS = ("decode", "prefill", "streams", "dense")
PROMPT, STREAMS, STREAM_CONTEXT = 512, 8, 128
_BANDWIDTH_BYTES = 2**28
"""Well beyond any cache, and little beside a model."""
_PASSES = 10
_GAP_SECONDS = 0.2
"""Threads that wait actively have gone to sleep by then."""


def main() -> None:
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that no side is left behind
    torch.set_num_threads(given.threads)
    numbers: dict[str, Any] = {"layers": given.layers or "all", "threads": given.threads, "pages": given.pages}
    numbers |= {"alternate": given.alternate, "rounds": given.rounds, "cache": given.cache}
    with ExitStack() as stack:
        scratch = given.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cpu-")))
        for bits in given.bits:
            config = shape("ling_mini", given.layers or None)
            models = made(scratch, config, bits, given)
            numbers[f"int{bits}"] = compare(models, config, bits, given)
            tell(f"int{bits}", numbers[f"int{bits}"])
            if given.scratch is None:
                remove(models)
            if "dense" in given.parts:
                numbers[f"dense int{bits}"] = dense(scratch, bits, given, numbers[f"int{bits}"])
                tell(f"dense int{bits}", numbers[f"dense int{bits}"])
    print(describe_machine())
    print(save("cpu-vs-llamacpp" + (f"-{given.name}" if given.name else ""), numbers).name)


def arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=10, help="0: all")
    parser.add_argument("--dense-layers", type=int, help="of qwen3_8b; left out: as many as --layers")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4], choices=sorted(FORMS))
    parser.add_argument("--parts", nargs="+", default=["decode", "prefill", "streams"], choices=PARTS)
    parser.add_argument("--contexts", type=int, nargs="+", default=[0, 2048])
    parser.add_argument("--tokens", type=int, default=32, help="steps of a burst")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--pages", default="mapped", help="ours: mapped, copied or locked")
    parser.add_argument("--cache", default="auto", help="ours: auto or fp8")
    parser.add_argument("--no-repack", action="store_true", help="llama.cpp reads weights as they lie in the file")
    parser.add_argument("--ours-alone", action="store_true")
    parser.add_argument("--alternate", action="store_true", help="one engine in memory at a time, its file read first")
    parser.add_argument("--scratch", type=Path, help="where models stay; left out: they are removed")
    parser.add_argument("--name", help="put into the result's name")
    return parser.parse_args()


def made(scratch: Path, config: ModelConfig, bits: int, given: Any, *, preset: str = "ling_mini") -> dict[str, Path]:
    """Return the two sides' files, written where they are not there already."""
    ours, theirs = FORMS[bits]
    models = {"ling": scratch / f"{preset}-{config.num_hidden_layers}-int{bits}"}
    if config.num_experts and not given.ours_alone:
        models["llama.cpp"] = models["ling"].with_suffix(".gguf")
    needed = 2.2 * packed_bytes(config, read_weights(ours))
    if not all(path.exists() for path in models.values()) and shutil.disk_usage(scratch).free < needed:
        sys.exit(f"{needed / 1e9:.0f} GB of disk are needed in {scratch}; name another --scratch")
    for path, form in zip(models.values(), (ours, theirs)):
        if not path.exists():
            make(path, config, form, workers=given.threads)
    return models


def remove(models: dict[str, Path]) -> None:
    for path in models.values():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


# ---- processes ----


class Side:
    """One engine in a process that runs only while it is asked."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.told = self._read()
        self._signal(signal.SIGSTOP)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._read()
        self._signal(signal.SIGSTOP)
        return answer

    def end(self) -> None:
        with suppress(ProcessLookupError):
            self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the process of {self._process.args} has ended; its reason stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)


@contextmanager
def running(engine: str, model: Path, config: ModelConfig, given: Any) -> Iterator[Side]:
    length = max([PROMPT + 1, *(c + given.tokens + 8 for c in given.contexts), STREAM_CONTEXT + given.tokens + 64])
    options: dict[str, Any] = {"threads": given.threads, "length": length, "streams": STREAMS}
    options |= {"vocabulary": config.vocab_size, "pages": given.pages, "cache": given.cache}
    if engine == "llama.cpp":
        options["repack"] = not given.no_repack
    if given.alternate:
        warm(model)
    python = peer_python("llama_cpp") if engine == "llama.cpp" else sys.executable
    process = subprocess.Popen(
        [python, "-m", "benchmarks.cpu_side", engine, model, json.dumps(options)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    side = None
    try:
        side = Side(process)
        yield side
    finally:
        if side is None:
            process.kill()
        else:
            side.end()


def warm(model: Path) -> None:
    """Read a model's files, so that they lie in the page cache."""
    for file in sorted(model.glob("*.safetensors")) if model.is_dir() else [model]:
        with file.open("rb", buffering=0) as opened:
            while opened.read(2**24):
                pass


# ---- measuring ----


@dataclass
class Bursts:
    """What one side did in one part."""

    seconds: list[list[float]] = field(default_factory=list)
    """Of each step, by rounds."""
    bandwidths: list[float] = field(default_factory=list)
    """GB/s beside each round."""

    def summary(self, tokens: int, nbytes: float) -> dict[str, Any]:
        """Return the figures of steps that each give `tokens` tokens and read `nbytes` bytes; 0: not looked at."""
        fastest = min(min(steps) for steps in self.seconds)
        median = statistics.median(step for steps in self.seconds for step in steps)
        # The fastest step had the machine as much to itself as the fastest pass over memory.
        limits = {"fastest": max(self.bandwidths), "median": statistics.median(self.bandwidths)}
        found: dict[str, Any] = {
            "fastest_ms": round(1e3 * fastest, 2),
            "median_ms": round(1e3 * median, 2),
            "tokens_per_second": {"fastest": round(tokens / fastest, 2), "median": round(tokens / median, 2)},
            "bandwidth_beside_gb_per_second": {name: round(limit, 1) for name, limit in limits.items()},
        }
        if nbytes:
            rates = {"fastest": nbytes / fastest / 1e9, "median": nbytes / median / 1e9}
            found |= {
                "gb_per_step": round(nbytes / 1e9, 4),
                "gb_per_second": {name: round(rate, 1) for name, rate in rates.items()},
                "percent_of_bandwidth": {name: round(100 * rate / limits[name]) for name, rate in rates.items()},
            }
        return found


def questions(given: Any) -> dict[str, dict[str, Any]]:
    """Return what both sides are asked, by the name of the part."""
    asked: dict[str, dict[str, Any]] = {}
    if "decode" in given.parts:
        for context in given.contexts:
            asked[f"decode at {context}"] = {"do": "decode", "context": context, "tokens": given.tokens, "streams": 1}
    if "prefill" in given.parts:
        asked[f"prefill {PROMPT}"] = {"do": "prefill", "tokens": PROMPT}
    if "streams" in given.parts:
        for count in (1, STREAMS):
            asked[f"{count} at once"] = {
                "do": "decode", "context": STREAM_CONTEXT, "tokens": given.tokens, "streams": count,
            }  # fmt: skip
    return asked


def compare(models: dict[str, Path], config: ModelConfig, bits: int, given: Any) -> dict[str, Any]:
    """Ask both sides everything, in turns; return each one's figures and the ratios of ours to theirs."""
    asked = questions(given)
    bursts = {name: {part: Bursts() for part in asked} for name in models}
    told: dict[str, Any] = {}
    unique: dict[str, float] = {}
    with ExitStack() as stack:
        resident = {} if given.alternate else {
            name: stack.enter_context(running(name, model, config, given)) for name, model in models.items()
        }  # fmt: skip
        for index in range(given.rounds + (not given.alternate)):
            order = list(models)[:: 1 if index % 2 == 0 else -1]
            if given.alternate:
                for name in order:
                    with running(name, models[name], config, given) as side:
                        told[name] = side.told
                        for question in asked.values():  # to warm up
                            side.ask({**question, "tokens": min(4, question["tokens"]), "context": 0})
                        for part, question in asked.items():
                            burst(side, question, bursts[name][part])
                        unique |= experts_read(name, side, config, given)
                continue
            for part, question in asked.items():
                for name in order:
                    burst(resident[name], question, bursts[name][part] if index else Bursts())
        for name, side in resident.items():
            told[name] = side.told
            unique |= experts_read(name, side, config, given)
    found: dict[str, Any] = {"told": told, "unique_experts_per_layer": unique}
    for part, question in asked.items():
        rows = question.get("streams", question["tokens"])
        found[part] = {
            name: bursts[name][part].summary(rows, read_bytes(name, part, question, config, bits, unique, given))
            for name in models
        }
        if len(models) == 2:
            ours, theirs = (bursts[name][part].seconds for name in models)
            ratios = [statistics.median(b) / statistics.median(a) for a, b in zip(ours, theirs, strict=True)]
            ratio = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
            ratio["of_fastest"] = min(map(min, theirs)) / min(map(min, ours))
            found[part]["ratio"] = {name: round(value, 3) for name, value in ratio.items()}
    for name in models:
        if "streams" in given.parts:
            one, many = (found[f"{n} at once"][name]["tokens_per_second"]["median"] for n in (1, STREAMS))
            found[f"{STREAMS} at once"][name]["times_one"] = round(many / one, 2)
    return found


def burst(side: Side, question: dict[str, Any], into: Bursts) -> None:
    before = bandwidth()
    into.seconds.append(side.ask(question)["seconds"])
    time.sleep(_GAP_SECONDS)
    into.bandwidths.append(max(before, bandwidth()))


def experts_read(name: str, side: Side, config: ModelConfig, given: Any) -> dict[str, float]:
    if name != "ling" or "streams" not in given.parts or not config.num_experts:
        return {}
    return {str(n): side.ask({"do": "experts", "streams": n, "tokens": 8})["unique"] for n in (1, STREAMS)}


def bandwidth() -> float:
    """Return the GB/s at which all threads read memory, the best of a few passes of two kinds."""
    values = torch.ones(_BANDWIDTH_BYTES // 4)
    low, high = values.chunk(2)
    best = float("inf")
    for read in (values.amax, lambda: torch.dot(low, high)) * _PASSES:
        begin = time.perf_counter()
        read()
        best = min(best, time.perf_counter() - begin)
    return _BANDWIDTH_BYTES / best / 1e9


# ---- bytes ----


def read_bytes(
    name: str, part: str, question: dict[str, Any], config: ModelConfig, bits: int, unique: dict[str, float], given: Any
) -> float:
    """Return the bytes that a step of decoding must read; 0 for a prompt, which computes rather than reads."""
    if question["do"] == "prefill":
        return 0.0
    streams = question["streams"]
    experts = unique.get(str(streams), float(config.num_experts_per_tok))
    weights = our_bytes(config, FORMS[bits][0], experts) if name == "ling" else their_bytes(config, bits, experts)
    size = {"auto": 4, "fp8": 1}[given.cache] if name == "ling" else 2
    row = 2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers * size
    return weights + row * streams * (question["context"] + question["tokens"] / 2)


def our_bytes(config: ModelConfig, form: str, experts: float) -> float:
    share = experts / max(1, config.num_experts)
    state = packed_model(config, read_weights(form)).state_dict()
    return sum(
        tensor.nbytes * (share if ".mlp.experts." in key else 1)
        for key, tensor in state.items()
        if not key.startswith("model.word_embeddings.")
    )


def their_bytes(config: ModelConfig, bits: int, experts: float) -> float:
    share = experts / config.num_experts
    return sum(
        tensor.nbytes * (share if "_exps." in tensor.name else 1)
        for tensor in plan_gguf(config, FORMS[bits][1])  # type: ignore[arg-type]
        if tensor.name != "token_embd.weight"
    )


# ---- the dense model ----


def dense(scratch: Path, bits: int, given: Any, sparse: dict[str, Any]) -> dict[str, Any]:
    """Measure our own engine with a dense model of 8B's shape; return its figures beside those of `sparse`."""
    full = shape("qwen3_8b", None).num_hidden_layers
    layers = given.dense_layers or (given.layers if given.layers else full)
    config = shape("qwen3_8b", min(layers, full))
    config_alone = argparse.Namespace(**{**vars(given), "parts": [p for p in given.parts if p != "streams"]})
    models = made(scratch, config, bits, config_alone, preset="qwen3_8b")
    found = compare(models, config, bits, config_alone)
    if given.scratch is None:
        remove(models)
    for part, figures in found.items():
        if part.startswith("decode") and part in sparse:
            ours, beside = figures["ling"], sparse[part]["ling"]
            in_bytes = ours["gb_per_step"] / beside["gb_per_step"]
            figures["sparse_over_dense"] = {"bytes": round(in_bytes, 2)}
            for kind in ("fastest", "median"):
                in_speed = ours[f"{kind}_ms"] / beside[f"{kind}_ms"]
                told = {"speed": round(in_speed, 2), "percent_of_bytes": round(100 * in_speed / in_bytes)}
                figures["sparse_over_dense"][kind] = told
    return found


def tell(name: str, found: dict[str, Any]) -> None:
    print(name, json.dumps(found, indent=2), flush=True)


if __name__ == "__main__":
    main()
