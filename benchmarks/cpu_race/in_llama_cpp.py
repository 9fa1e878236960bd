"""llama.cpp's side, through the functions of llama.h at b11434; it feeds itself random tokens and chooses none.

Contexts that were filled are kept, and what decoding put behind them is taken away again.
"""

import ctypes as c
import random
import sys
import time
from typing import Any

from benchmarks.cpu_race.side import BATCH, Answer, Asked
from benchmarks.llama_cpp_probe import Batch, ContextParams, ModelParams, load_libraries

MOST_STEPS = 256
"""Behind a context, in one burst."""


def start(model: str, *, threads: int, vocabulary: int, repack: bool, **_: Any) -> tuple[dict[str, Any], Answer]:
    llama = load_libraries()[1]
    llama.llama_model_default_params.restype = ModelParams
    llama.llama_context_default_params.restype = ContextParams
    llama.llama_batch_init.restype = Batch
    llama.llama_model_load_from_file.restype = llama.llama_init_from_model.restype = c.c_void_p
    llama.llama_get_memory.restype = c.c_void_p
    llama.llama_memory_seq_rm.restype = c.c_bool
    llama.llama_get_logits.restype = c.POINTER(c.c_float)
    llama.llama_backend_init()
    params = llama.llama_model_default_params()
    params.use_extra_bufts = repack
    loaded = c.c_void_p(llama.llama_model_load_from_file(model.encode(), params))
    if not loaded:
        sys.exit(f"llama.cpp does not load {model}")
    runs = Runs(llama, loaded, threads, vocabulary)

    def answer(asked: Asked) -> dict[str, Any]:
        if asked["do"] == "prefill":
            return {"seconds": runs.prefill(asked["tokens"])}
        return {"seconds": runs.decode(max(1, asked["context"]), asked["tokens"], asked["streams"])}

    return {"version": "b11434", "engine": ["repacked" if repack else "as in the file"]}, answer


class Runs:
    """A loaded model and its contexts."""

    def __init__(self, llama: c.CDLL, model: c.c_void_p, threads: int, vocabulary: int) -> None:
        self._llama = llama
        self._model = model
        self._threads = threads
        self._vocabulary = vocabulary
        self._draw = random.Random(1)
        self._batch = llama.llama_batch_init(BATCH, 0, 1)
        self._filled: dict[tuple[int, int], c.c_void_p] = {}
        """By length and number of sequences."""

    def decode(self, length: int, tokens: int, streams: int) -> list[float]:
        assert tokens <= MOST_STEPS, tokens
        if (length, streams) not in self._filled:
            self._filled[length, streams] = context = self._context(length + MOST_STEPS, streams)
            for sequence in range(streams):
                self._fill(context, sequence, length)
        context = self._filled[length, streams]
        seconds = []
        for step in range(tokens):
            begin = time.perf_counter()
            self._run(context, [(s, length + step) for s in range(streams)], last_only=False)
            seconds.append(time.perf_counter() - begin)
        memory = c.c_void_p(self._llama.llama_get_memory(context))
        for sequence in range(streams):
            assert self._llama.llama_memory_seq_rm(memory, c.c_int32(sequence), c.c_int32(length), c.c_int32(-1))
        return seconds

    def prefill(self, tokens: int) -> list[float]:
        context = self._context(tokens, 1)
        begin = time.perf_counter()
        self._fill(context, 0, tokens)
        seconds = time.perf_counter() - begin
        self._llama.llama_free(context)
        return [seconds]

    def _context(self, length: int, streams: int) -> c.c_void_p:
        wanted = self._llama.llama_context_default_params()
        wanted.n_ctx, wanted.n_batch, wanted.n_ubatch = max(256, length) * streams, BATCH, BATCH
        wanted.n_seq_max, wanted.n_threads, wanted.n_threads_batch = streams, self._threads, self._threads
        made = c.c_void_p(self._llama.llama_init_from_model(self._model, wanted))
        assert made, "no context"
        return made

    def _fill(self, context: c.c_void_p, sequence: int, tokens: int) -> None:
        for begin in range(0, tokens, BATCH):
            rows = [(sequence, p) for p in range(begin, min(begin + BATCH, tokens))]
            self._run(context, rows, last_only=True)

    def _run(self, context: c.c_void_p, rows: list[tuple[int, int]], *, last_only: bool) -> None:
        """Run rows of (sequence, position) with random tokens, and wait for the logits."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (sequence, position) in enumerate(rows):
            batch.token[i], batch.pos[i] = self._draw.randrange(self._vocabulary), position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = not last_only or i == len(rows) - 1
        assert self._llama.llama_decode(context, batch) == 0
        self._llama.llama_get_logits(context)
