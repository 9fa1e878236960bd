"""What the routes share: the engine, its tokenizer, and everything made once."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ling.engine.grammar import GrammarCompiler
from ling.engine.loop import EngineLoop
from ling.engine.request import SamplingParams
from ling.server.constraints import constraint_of, naming_the_form
from ling.server.errors import ApiError
from ling.server.metrics import Metrics
from ling.server.prompts import Prompt, check_ids, check_judged, check_size, smallest_length
from ling.server.sampling import SamplingDefaults, sampling_params
from ling.server.schema import ChatRequest, CompletionRequest
from ling.server.settings import ServerSettings

_TOKENIZING = 2

AUTO = "auto"
"""What published clients call whichever model is served."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready for the engine."""

    prompts: Sequence[Prompt]
    params: SamplingParams
    grammar: Any
    """What `params.structured_outputs` was compiled to, or None."""


class Service:
    """One engine behind one address."""

    def __init__(self, engine: EngineLoop, settings: ServerSettings, defaults: SamplingDefaults) -> None:
        self.engine, self.settings, self.defaults = engine, settings, defaults
        self.tokenizer = engine.engine.tokenizer
        self.max_model_len = engine.engine.max_model_len
        self.metrics = Metrics(engine, settings.served_names[0], vllm=settings.vllm_metrics)
        self.started = int(time.time())
        self.workers = ThreadPoolExecutor(max(4, min(16, os.cpu_count() or 1)), "server")
        """Parse, render, tokenise and compile beside the event loop."""
        self.tokenizing = ThreadPoolExecutor(_TOKENIZING, "tokenize")
        """The same for `/tokenize` and `/detokenize`: their texts may be as long as a body, and answers do not wait."""
        self._longest_token = max(len(self.tokenizer.token_bytes(id)) for id in range(self.tokenizer.vocab_size))
        self._vocab_size = engine.engine.model.config.vocab_size
        self._compiler = GrammarCompiler(self.tokenizer, self._vocab_size)

    def name_of(self, asked: str) -> str:
        """Return what an answer calls the model. Raises ApiError unless it is this one."""
        names = self.settings.served_names
        if asked == AUTO:
            return names[0]
        if asked not in names:
            raise ApiError(
                f"the model does not exist here; this server has {', '.join(names)}, which is also called {AUTO}",
                status=404, param="model", code="model_not_found",
            )  # fmt: skip
        return asked

    def prepare(self, request: ChatRequest | CompletionRequest, encode: Callable[[], Sequence[Prompt]]) -> Prepared:
        """Make a checked request ready, or say why the engine could never run it."""
        with naming_the_form(request):
            constraint = constraint_of(request)
        if (least := smallest_length(request, self._longest_token)) >= self.max_model_len:
            raise self._too_long(f"more than {least}")
        check_size(request, self.max_model_len)
        prompts = encode()
        length = max(len(prompt.ids) for prompt in prompts)
        if (room := self.max_model_len - length) < 1:
            raise self._too_long(str(length))
        check_judged(request, prompts)
        params = sampling_params(request, self.defaults, room=room, structured_outputs=constraint)
        for name in ("logit_bias", "stop_token_ids"):  # the engine's own check does not say which
            check_ids(self._vocab_size, getattr(params, name), name)
        for prompt in prompts:
            self.engine.engine.check(prompt.ids, params)
        with naming_the_form(request):
            grammar = None if constraint is None else self._compiler.compile(constraint)
        return Prepared(prompts, params, grammar)

    def _too_long(self, tokens: str) -> ApiError:
        return ApiError(
            f"the prompt has {tokens} tokens, this model's maximum context length is {self.max_model_len} tokens, "
            "and the answer needs one too",
            code="context_length_exceeded",
        )

    def why_unhealthy(self) -> str | None:
        """Return None while requests are served."""
        engine = self.engine
        if not engine.alive:
            return "the engine has stopped"
        if engine.draining:
            return "shutting down"
        if engine.num_unfinished and engine.seconds_since_progress > self.settings.stalled_seconds:
            return f"no progress for {engine.seconds_since_progress:.0f} s while {engine.num_unfinished} requests wait"
        return None
