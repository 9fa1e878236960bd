"""`LLM`: prompts in, completions out, with the names and arguments that users of vLLM know."""

import copy
import dataclasses
import difflib
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from functools import cached_property
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ling.checkpoint.hub import resolve_checkpoint
from ling.checkpoint.pages import check_page_mode
from ling.config.engine import EngineConfig
from ling.engine.arguments import conversations, token_ids
from ling.engine.build import build, device_of, dtype_of, load
from ling.engine.core import Engine
from ling.engine.early import check_overrides, check_sizes, packed_weights
from ling.engine.grammar import Grammar, GrammarCompiler
from ling.engine.memory import cache_gib_within
from ling.engine.request import CompletionOutput, Delta, RequestOutput, SamplingParams
from ling.engine.scoring import negative_log_likelihoods
from ling.engine.stats import EngineStats
from ling.engine.threads import set_threads
from ling.errors import ConfigError, RequestError
from ling.model import CausalLM
from ling.tokenizer import Tokenizer, encode_chat

logger = logging.getLogger(__name__)

Prompt = str | SequenceOf[int] | Mapping[str, Any]
"""Text, token ids, or `{"prompt": text}` or `{"prompt_token_ids": ids}`."""
Message = Mapping[str, Any]
Params = SamplingParams | SequenceOf[SamplingParams]


class LLM:
    """A model and its tokenizer, ready to generate. `engine` is what runs; it is built when first needed.

    model      a checkpoint directory or a hub's name; or a model, with its tokenizer
    dtype      what weights are held and computed in; auto: float32 on a CPU, elsewhere as published
    quantization  "fp8" keeps block-quantised weights as codes, "int8" and "int4" pack every matrix as it is read,
               "mixed" to 4 bits and the head to 8, "int4,head=int8" and the like by kind; None: values
    threads    of a CPU, for all that torch does in this process; None: as they are
    weight_pages  where the weights of a prepared checkpoint lie: "mapped", "copied" or "locked"
    options    fields of `EngineConfig`
    """

    def __init__(
        self,
        model: str | Path | CausalLM,
        tokenizer: Tokenizer | None = None,
        *,
        dtype: str | torch.dtype = "auto",
        quantization: str | None = None,
        hf_overrides: Mapping[str, Any] | None = None,
        speculative_config: Mapping[str, Any] | None = None,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float | None = None,
        trust_remote_code: bool = False,
        enforce_eager: bool = False,
        device: str | torch.device = "auto",
        threads: int | None = None,
        weight_pages: str = "mapped",
        **options: Any,
    ) -> None:
        if tensor_parallel_size != 1:
            raise ConfigError(
                f"tensor_parallel_size {tensor_parallel_size}: one engine runs on one device. For several, prepare the "
                "checkpoint with `ling export --for vllm` and load it there."
            )
        if trust_remote_code:
            logger.info("trust_remote_code: no code of a checkpoint is ever run; nothing to do")
        if enforce_eager:
            logger.info("enforce_eager: nothing is compiled; nothing to do")
        if threads is not None:
            logger.info(set_threads(_threads(threads)))
        self._config = _engine_config({**_drafting(speculative_config), **options})
        if isinstance(model, CausalLM):
            if tokenizer is None:
                raise ConfigError("a model needs its tokenizer: LLM(model, tokenizer)")
            for_loading = {"dtype": dtype, "quantization": quantization, "hf_overrides": hf_overrides,
                           "device": device, "weight_pages": weight_pages}  # fmt: skip
            if list(for_loading.values()) != ["auto", None, None, "auto", "mapped"]:
                raise ConfigError(f"{', '.join(for_loading)} are for loading; this model is loaded")
            self.model, self.tokenizer = model, tokenizer
        elif tokenizer is not None:
            raise ConfigError("a checkpoint directory has its own tokenizer; leave the tokenizer out, or give a model")
        else:
            given: dict[str, Any] = {
                "dtype": dtype_of("dtype", dtype), "quantization": quantization, "hf_overrides": hf_overrides,
                "device": device_of("device", device), "pages": check_page_mode("weight_pages", weight_pages),
            }  # fmt: skip
            packed_weights("quantization", quantization)
            check_overrides("hf_overrides", hf_overrides)
            directory = resolve_checkpoint(_path(model))
            if gpu_memory_utilization is None or given["device"].type == "cpu":  # else the cache is sized afterwards
                wanted = {key: value for key, value in given.items() if key != "pages"}
                check_sizes(directory, self._config, **wanted)
            self.model, self.tokenizer = load(directory, **given)
        if gpu_memory_utilization is not None:
            self._config = self._sized(gpu_memory_utilization)
        self.stats = EngineStats()
        """Of the last call."""
        self._ids = itertools.count()
        self._waiting: dict[str, list[Delta]] = {}
        """What steps made for streams that are open but did not ask for it."""

    def _sized(self, share: float) -> EngineConfig:
        """Give the cache what a share of the GPU's memory leaves."""
        device = self.model.model.word_embeddings.weight.device
        if device.type != "cuda":
            logger.info("gpu_memory_utilization has no effect on a CPU; kv_cache_gib sizes the cache")
            return self._config
        if self._config.kv_cache_gib:
            raise ConfigError("gpu_memory_utilization and kv_cache_gib both size the cache; give one")
        return dataclasses.replace(self._config, kv_cache_gib=cache_gib_within(share, device))

    @cached_property
    def engine(self) -> Engine:
        engine = build(self.model, self.tokenizer, self._config)
        if engine.sizes.lowered:
            logger.info("context %s tokens, %s", f"{engine.max_model_len:,}", engine.sizes.lowered)
        return engine

    @cached_property
    def grammars(self) -> GrammarCompiler:
        return GrammarCompiler(self.tokenizer, self.model.config.vocab_size)

    def generate(
        self,
        prompts: Prompt | SequenceOf[Prompt],
        sampling_params: Params | None = None,
        *,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Complete each prompt; the order is kept. Raises RequestError if one can never run, before any does.

        use_tqdm  show a progress bar on stderr
        """
        each = _each(prompts)
        params = _per_prompt(sampling_params, len(each))
        requests = [(self.encode(p), own, self._grammar(own)) for p, own in zip(each, params)]
        for ids, own, _ in requests:
            self.engine.check(ids, own)
        outputs: dict[str, RequestOutput] = {}
        for prompt, (ids, own, _) in zip(each, requests):
            name = str(next(self._ids))
            empty = [CompletionOutput(index=i, text="", token_ids=[]) for i in range(own.n)]
            outputs[name] = RequestOutput(
                request_id=name, prompt=_text(prompt), prompt_token_ids=ids, outputs=empty, finished=False
            )
        for delta in self._run(list(zip(outputs, requests)), progress=use_tqdm):
            _join(outputs[delta.request_id], delta)
            if delta.error is not None:
                raise delta.error
        return list(outputs.values())

    def chat(
        self,
        messages: SequenceOf[Message] | SequenceOf[SequenceOf[Message]],
        sampling_params: Params | None = None,
        *,
        tools: SequenceOf[Any] | None = None,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Answer one conversation of OpenAI messages, or each of several.

        tools  for all of them; or, with several conversations, a list of tools for each
        """
        prompts = [self.chat_prompt(own, shown) for own, shown in conversations(messages, tools)]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[Delta]:
        """Yield what each step adds to the answers of one prompt. Closing the iterator aborts them."""
        params = sampling_params or SamplingParams()
        request = (self.encode(prompt), params, self._grammar(params))
        for delta in self._run([(str(next(self._ids)), request)]):
            if delta.error is not None:
                raise delta.error
            yield delta

    def encode(self, prompt: Prompt) -> list[int]:
        """Return a prompt's token ids; special tokens spelt in its text are special."""
        given: Any = prompt
        if isinstance(prompt, Mapping):
            given = prompt.get("prompt_token_ids")
            if given is not None:
                return token_ids("prompt_token_ids", given)
            given = prompt.get("prompt")
        return self.tokenizer.encode(given) if isinstance(given, str) else token_ids("a prompt", given)

    def chat_prompt(self, messages: SequenceOf[Message], tools: SequenceOf[Any] = ()) -> list[int]:
        """Return the tokens after which the model answers."""
        return encode_chat(self.tokenizer, messages, tools=tools or None, add_generation_prompt=True)[0]

    def negative_log_likelihoods(self, sequences: SequenceOf[SequenceOf[int]]) -> list[list[float]]:
        """Return the nats of each token after the first, per sequence."""
        return negative_log_likelihoods(self.model, sequences)

    def _grammar(self, params: SamplingParams) -> Grammar | None:
        wanted = params.structured_outputs
        return None if wanted is None else self.grammars.compile(wanted)

    def _run(
        self, requests: list[tuple[str, tuple[list[int], SamplingParams, Grammar | None]]], *, progress: bool = False
    ) -> Iterator[Delta]:
        """Run requests to their end; whatever ends the iteration aborts what is left."""
        before = copy.deepcopy(self.engine.stats)
        own = [name for name, _ in requests]
        try:
            for name, (ids, params, grammar) in requests:
                self.engine.add(name, ids, params, grammar=grammar)
            left = sum(params.n for _, (_, params, _) in requests)
            with _Progress(left, shown=progress) as bar:
                while left:
                    for delta in self._next(own):
                        left -= delta.finish_reason is not None
                        bar.advance(delta.finish_reason is not None)
                        yield delta
        finally:
            for name in own:
                self.engine.abort(name)
                self._waiting.pop(name, None)
            self.stats = self.engine.stats.since(before)

    def _next(self, own: list[str]) -> list[Delta]:
        """Return deltas of these requests: those that a step of another iteration made, or those of the next step."""
        if kept := [delta for name in own for delta in self._waiting.pop(name, ())]:
            return kept
        mine = set(own)
        deltas = self.engine.step()
        for delta in deltas:
            if delta.request_id not in mine:  # of a stream that is open meanwhile
                self._waiting.setdefault(delta.request_id, []).append(delta)
        return [delta for delta in deltas if delta.request_id in mine]


class _Progress:
    """A bar of finished answers."""

    def __init__(self, total: int, *, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), disable=not shown)
        self._task = self._bar.add_task("answers", total=total)

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, finished: bool) -> None:
        if finished:
            self._bar.advance(self._task)


def _join(output: RequestOutput, delta: Delta) -> None:
    """Add a delta to the answer it belongs to."""
    answer = output.outputs[delta.index]
    answer.text += delta.text
    answer.token_ids += delta.token_ids
    answer.finish_reason, answer.stop_reason = delta.finish_reason, delta.stop_reason
    if delta.prompt_logprobs is not None:
        output.prompt_logprobs = delta.prompt_logprobs
    output.num_cached_tokens = max(output.num_cached_tokens, delta.num_cached_tokens)
    if delta.logprobs:
        answer.logprobs = [*(answer.logprobs or []), *delta.logprobs]
        own = (entry[token].logprob for entry, token in zip(delta.logprobs, delta.token_ids))
        answer.cumulative_logprob = (answer.cumulative_logprob or 0.0) + sum(own)
    output.finished = all(o.finish_reason is not None for o in output.outputs)


def _engine_config(options: dict[str, Any]) -> EngineConfig:
    known = [f.name for f in dataclasses.fields(EngineConfig)]
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise ConfigError(f"LLM has no option {name}" + (f"; did you mean {close[0]}?" if close else ""))
    return EngineConfig(**options)


def _drafting(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Translate vLLM's `speculative_config`."""
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise ConfigError(f"speculative_config must map method and num_speculative_tokens to values, got {config!r}")
    if stray := set(config) - {"method", "num_speculative_tokens"}:
        raise ConfigError(
            f"speculative_config has no key {sorted(stray)[0]}; it takes method and num_speculative_tokens"
        )
    method = config.get("method", "mtp")
    if method not in ("mtp", "ngram"):
        raise ConfigError(f"speculative_config.method must be mtp or ngram, got {json.dumps(method)}")
    return {"drafting": method, "num_speculative_tokens": config.get("num_speculative_tokens", 3)}


def _threads(count: object) -> int:
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
        raise ConfigError(f"threads must be a whole number, at least 1, got {count!r}")
    return int(count)


def _path(model: object) -> Path:
    if not isinstance(model, str | PathLike) or not str(model):
        raise ConfigError(f"model must be a checkpoint directory, a hub's name or a model, got {model!r}")
    return Path(model)


def _per_prompt(params: Params | None, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if isinstance(params, Mapping) or not all(isinstance(p, SamplingParams) for p in params):
        raise RequestError("sampling_params must be SamplingParams, or a list of them")
    if len(params) != count:
        raise RequestError(f"{count} prompts need as many sampling_params, got {len(params)}")
    return list(params)


def _each(prompts: Any) -> list[Any]:
    """Return a list of prompts, be it that one or several are given."""
    if hasattr(prompts, "tolist"):
        prompts = prompts.tolist()
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if isinstance(prompts, bytes) or not isinstance(prompts, Iterable):
        raise RequestError(f"a prompt must be a text or a list of token ids, got {prompts!r}")
    prompts = list(prompts)
    return [prompts] if prompts and isinstance(prompts[0], Integral) else prompts


def _text(prompt: Prompt) -> str | None:
    if isinstance(prompt, Mapping):
        return prompt.get("prompt")
    return prompt if isinstance(prompt, str) else None
