"""`/metrics`, for Prometheus: under names of our own, and on request under those of vLLM's that dashboards use.

Counts that the engine keeps are read when somebody asks; the server itself measures only how long requests take.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ling.engine.core import Engine
from ling.engine.loop import EngineLoop
from ling.engine.request import SamplingParams
from ling.server.prompts import Prompt

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LONG = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_TOKENS = tuple(float(2**power) for power in range(0, 19, 2))
_ANSWERS = (1, 2, 4, 8, 16)

Read = Callable[[Engine], float]


@dataclass(frozen=True, slots=True)
class _Reading:
    name: str
    vllm: str
    what: str
    read: Read
    is_counter: bool = False


_READINGS = (
    _Reading("requests_running", "num_requests_running", "Answers being generated.", lambda e: e.num_running),
    _Reading("requests_waiting", "num_requests_waiting", "Answers waiting for room.", lambda e: e.num_waiting),
    _Reading("cache_used_fraction", "kv_cache_usage_perc", "Blocks of the cache in use, 0 to 1.",
             lambda e: 1 - e.blocks.num_free / e.blocks.num_blocks),
    _Reading("prompt_tokens", "prompt_tokens", "Prompt tokens.", lambda e: e.stats.prompt_tokens, True),
    _Reading("generated_tokens", "generation_tokens", "Generated tokens.", lambda e: e.stats.tokens, True),
    _Reading("prefix_cache_queried_tokens", "prefix_cache_queries", "Prompt tokens looked for in the prefix cache.",
             lambda e: e.stats.queried_tokens, True),
    _Reading("prefix_cache_hit_tokens", "prefix_cache_hits", "Prompt tokens found there.",
             lambda e: e.stats.cached_tokens, True),
    _Reading("preemptions", "num_preemptions", "Answers set back to make room.", lambda e: e.stats.preemptions, True),
    _Reading("steps", "", "Steps of the engine.", lambda e: e.stats.steps, True),
    _Reading("draft_rounds", "spec_decode_num_drafts", "How often tokens were proposed behind an answer.",
             lambda e: e.stats.draft_rounds, True),
    _Reading("drafted_tokens", "spec_decode_num_draft_tokens", "Tokens proposed.", lambda e: e.stats.drafted, True),
    _Reading("accepted_tokens", "spec_decode_num_accepted_tokens", "Proposed tokens kept.",
             lambda e: e.stats.accepted, True),
    _Reading("failed_requests", "corrupted_requests", "Answers that failed inside the engine.",
             lambda e: e.stats.failed, True),
)  # fmt: skip

_VLLM_NAMES = {
    "ling_time_to_first_token_seconds": "vllm:time_to_first_token_seconds",
    "ling_inter_token_seconds": "vllm:inter_token_latency_seconds",
    "ling_time_per_output_token_seconds": "vllm:request_time_per_output_token_seconds",
    "ling_request_seconds": "vllm:e2e_request_latency_seconds",
    "ling_queue_seconds": "vllm:request_queue_time_seconds",
    "ling_prefill_seconds": "vllm:request_prefill_time_seconds",
    "ling_decode_seconds": "vllm:request_decode_time_seconds",
    "ling_inference_seconds": "vllm:request_inference_time_seconds",
    "ling_request_prompt_tokens": "vllm:request_prompt_tokens",
    "ling_request_max_tokens": "vllm:request_params_max_tokens",
    "ling_request_choices": "vllm:request_params_n",
    "ling_answer_tokens": "vllm:request_generation_tokens",
    "ling_answers": "vllm:request_success",
    "ling_refused_requests": "vllm:admission_rejections",
}
"""Of what the server measures."""


class Metrics:
    """Everything that `/metrics` says of one server."""

    def __init__(self, engine: EngineLoop, model: str, *, vllm: bool) -> None:
        self._registry = registry = CollectorRegistry()  # the library's own is global, and says what Python runs on

        def histogram(name: str, what: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"ling_{name}", what, buckets=buckets, registry=registry)

        self.first_token = histogram("time_to_first_token_seconds", "From arrival to the first token.", _LONG)
        self.inter_token = histogram("inter_token_seconds", "Between tokens of an answer.", _SHORT)
        self.per_token = histogram("time_per_output_token_seconds", "The same, averaged over an answer.", _SHORT)
        self.queue = histogram("queue_seconds", "Of an answer, from the engine's queue to its first step.", _LONG)
        self.prefill = histogram("prefill_seconds", "From an answer's first step to its first token.", _LONG)
        self.decode = histogram("decode_seconds", "From the first token to the last.", _LONG)
        self.inference = histogram("inference_seconds", "From an answer's first step to its last token.", _LONG)
        self.request = histogram("request_seconds", "From arrival to the end.", _LONG)
        self.prompt_tokens = histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.max_tokens = histogram("request_max_tokens", "Most tokens that an answer may have.", _TOKENS)
        self.choices = histogram("request_choices", "Answers asked for to a prompt.", _ANSWERS)
        self.answer_tokens = histogram("answer_tokens", "Tokens of an answer.", _TOKENS)
        self.answers = Counter("ling_answers", "Answers given.", ["finished_reason"], registry=registry)
        self.aborted = Counter(
            "ling_aborted_requests", "Requests given up: client gone, deadline, failure.", registry=registry
        )
        self.refused = Counter("ling_refused_requests", "Requests not taken.", ["status"], registry=registry)
        registry.register(_EngineReadings(engine.engine, model if vllm else None))
        self._shown = CollectorRegistry()
        self._shown.register(_Shown(registry, model if vllm else None))

    def asked(self, prompts: Sequence[Prompt], params: SamplingParams) -> None:
        """Count requests that the engine has taken."""
        for prompt in prompts:
            self.prompt_tokens.observe(len(prompt.ids))
            self.choices.observe(params.n)
            if params.max_tokens is not None:
                self.max_tokens.observe(params.max_tokens)

    def text(self) -> bytes:
        return generate_latest(self._shown)


class _EngineReadings(Collector):
    def __init__(self, engine: Engine, vllm_model: str | None) -> None:
        self._engine, self._model = engine, vllm_model

    def collect(self) -> Iterator[Metric]:
        for reading in _READINGS:
            family = CounterMetricFamily if reading.is_counter else GaugeMetricFamily
            value = float(reading.read(self._engine))
            yield family(f"ling_{reading.name}", reading.what, value=value)
            if self._model is not None and reading.vllm:
                renamed = family(f"vllm:{reading.vllm}", reading.what, labels=["model_name"])
                renamed.add_metric([self._model], value)
                yield renamed
        per_position = list(self._engine.stats.accepted_per_position)
        for name, label in (("ling_accepted_tokens_per_position", None), (_PER_POSITION, self._model)):
            if name == _PER_POSITION and label is None:
                continue
            counts = CounterMetricFamily(
                name, "Proposed tokens kept, by how far ahead.", labels=["position", *(["model_name"] if label else [])]
            )
            for position, count in enumerate(per_position):
                counts.add_metric([str(position), *([label] if label else [])], float(count))
            yield counts


_PER_POSITION = "vllm:spec_decode_num_accepted_tokens_per_pos"


class _Shown(Collector):
    """Everything in `registry`; and what the server measures once more under vLLM's names, where a model is given."""

    def __init__(self, registry: CollectorRegistry, vllm_model: str | None) -> None:
        self._registry, self._model = registry, vllm_model

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            yield _copy(metric, metric.name, {})
            if self._model is not None and (name := _VLLM_NAMES.get(metric.name)) is not None:
                yield _copy(metric, name, {"model_name": self._model})


def _copy(metric: Metric, name: str, labels: dict[str, str]) -> Metric:
    """Copy under another name, without the times of creation that the library adds."""
    copy = Metric(name, metric.documentation, metric.type)
    for sample in metric.samples:
        if not sample.name.endswith("_created"):
            copy.add_sample(name + sample.name.removeprefix(metric.name), {**sample.labels, **labels}, sample.value)
    return copy
