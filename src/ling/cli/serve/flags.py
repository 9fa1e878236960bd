"""The flags of `ling serve`, once: vLLM's names, SGLang's beside them, and what either program calls each.

A flag that another program does not have is refused when that program is to serve, because nothing that was asked for
is ignored. Flags that mean nothing here are accepted and said to have no effect.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ON = "on"
"""How another program spells a flag without a value: it is given, or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One option of the command."""

    name: str
    """Of the value; the first spelling is made of it unless `spelt` is given."""
    help: str
    kind: Any = str
    default: Any = None
    also: tuple[str, ...] = ()
    """Further spellings."""
    spelt: tuple[str, ...] = ()
    """Every spelling, where the first is not made of the name."""
    vllm: str | None = None
    sglang: str | None = None
    """What the other programs call it; None: they have none, or it is translated in `elsewhere.py`."""
    translated: bool = False
    """Whether `elsewhere.py` sees to it."""

    @property
    def spellings(self) -> tuple[str, ...]:
        return self.spelt or (f"--{self.name.replace('_', '-')}", *self.also)


ADDRESS = (
    Flag(name="host", default="127.0.0.1", help="Address to listen at; 0.0.0.0: all of this machine's.",
         vllm="--host", sglang="--host"),
    Flag(name="port", kind=int, default=8000, help="0: one that is free.", vllm="--port", sglang="--port"),
    Flag(name="served_model_name", kind=list[str], help="What clients call the model; several, or repeated. `auto` "
         "always works.", translated=True),
    Flag(name="api_key", kind=list[str], help="Key that clients must send; several, or repeated.", translated=True),
    Flag(name="api_key_file", help="File with a key per line."),
    Flag(name="allowed_origins", kind=list[str], help="Web origins that may ask, or a JSON list of them; * for any.",
         translated=True),
    Flag(name="allowed_hosts", kind=list[str], help="Names of a proxy in front of a loopback address."),
)  # fmt: skip

MODEL = (
    Flag(name="dtype", default="auto", help="auto, float32, bfloat16 or float16.", vllm="--dtype", sglang="--dtype"),
    Flag(name="quantization", help="fp8: keep FP8 weights as stored; int8 or int4: pack every matrix as it "
         "is read; mixed: to 4 bits, the head to 8; int4,head=int8 and the like: by kind; left out: values.",
         translated=True),
    Flag(name="threads", kind=int, help="Of a CPU; left out: one for each core that may be used."),
    Flag(name="weight_pages", default="mapped", help="Of a prepared checkpoint: mapped from the page cache, copied "
         "into huge pages, or locked."),
    Flag(name="device", default="auto", help="cpu or cuda; auto: a GPU where there is one."),
    Flag(name="hf_overrides", also=("--json-model-override-args",), help="JSON laid over config.json, such as "
         '{"rope_scaling": {...}}.', vllm="--hf-overrides", sglang="--json-model-override-args"),
    Flag(name="tensor_parallel_size", kind=int, default=1, spelt=("--tensor-parallel-size", "-tp", "--tp-size"),
         help="GPUs that share each layer; above 1 another program serves.", translated=True),
    Flag(name="pipeline_parallel_size", kind=int, default=1, spelt=("--pipeline-parallel-size", "-pp", "--pp-size"),
         help="GPUs that the layers are dealt out to; above 1 another program serves.", translated=True),
    Flag(name="engine", default="auto", help="ling, vllm or sglang; auto: ling on one device.", translated=True),
    Flag(name="export_to", help="Where the checkpoint is written for vllm or sglang; left out: ling's cache.",
         translated=True),
)  # fmt: skip

LIMITS = (
    Flag(name="max_model_len", kind=int, also=("--context-length",), help="Tokens of prompt and answer; left out: "
         "the model's context.", translated=True),
    Flag(name="max_num_seqs", kind=int, default=64, also=("--max-running-requests",), help="Answers at once.",
         vllm="--max-num-seqs", sglang="--max-running-requests"),
    Flag(name="max_num_batched_tokens", kind=int, default=0, also=("--chunked-prefill-size",),
         help="Tokens of one step; 0: chosen.", vllm="--max-num-batched-tokens", sglang="--chunked-prefill-size"),
    Flag(name="max_num_queued_reqs", kind=int, default=1024, also=("--max-queued-requests",),
         help="Requests that may wait; further ones get 429.", vllm="--max-num-queued-reqs",
         sglang="--max-queued-requests"),
    Flag(name="gpu_memory_utilization", kind=float, also=("--mem-fraction-static",), help="Share of a GPU's memory "
         "for weights and cache.", vllm="--gpu-memory-utilization", sglang="--mem-fraction-static"),
    Flag(name="kv_cache_gib", kind=float, help="Memory of the cache in GiB; left out: chosen."),
    Flag(name="kv_cache_dtype", default="auto", help="auto, bfloat16, float16 or fp8.", translated=True),
    Flag(name="block_size", kind=int, default=16, also=("--page-size",), help="Tokens of a block of the cache.",
         vllm="--block-size", sglang="--page-size"),
    Flag(name="enable_prefix_caching", kind=bool, default=True,
         spelt=("--enable-prefix-caching/--no-enable-prefix-caching", " /--disable-radix-cache"),
         help="Keep finished blocks for prompts that begin alike.", translated=True),
    Flag(name="seed", kind=int, default=0, also=("--random-seed",), help="From which requests without one get theirs.",
         vllm="--seed", sglang="--random-seed"),
    Flag(name="batch_invariant", kind=bool, default=False, spelt=("--batch-invariant",),
         help="The same answer whatever else runs.", translated=True),
    Flag(name="head_shortlist", kind=bool, default=True, spelt=("--head-shortlist/--no-head-shortlist",),
         help="On a CPU, read half of a large int8 head where that tells who can be chosen."),
    Flag(name="request_timeout", kind=float, default=3600.0, help="Seconds for an answer, waiting included; 0: any."),
    Flag(name="shutdown_timeout", kind=float, default=10.0, help="Seconds for running answers after SIGTERM.",
         vllm="--shutdown-timeout"),
    Flag(name="metrics_compat", help="vllm: export metrics under vLLM's names as well."),
)  # fmt: skip

DRAFTS = (
    Flag(name="speculative_config", help='JSON such as {"method": "mtp", "num_speculative_tokens": 3}; methods mtp, '
         "ngram, none.", translated=True),
    Flag(name="speculative_algorithm", help="NEXTN or NGRAM.", translated=True),
    Flag(name="speculative_num_steps", kind=int, help="Tokens drafted per step.", translated=True),
    Flag(name="speculative_num_draft_tokens", kind=int, help="The same and one more, as SGLang counts.",
         translated=True),
    Flag(name="speculative_eagle_topk", kind=int, help="1; drafts are a chain.", translated=True),
)  # fmt: skip

FORMATS = (
    Flag(name="tool_call_parser", default="ling2", help="ling2; hermes and qwen25 are other names of it.",
         translated=True),
    Flag(name="reasoning_parser", default="ling2", help="ling2; deepseek_r1 and qwen3 are other names of it.",
         translated=True),
    Flag(name="chat_template", help="Refused: the model's format is built in.", translated=True),
)  # fmt: skip

NO_EFFECT = {
    "use_v2_block_manager": "there is one",
    "attention_backend": "kernels are chosen by what the device has",
    "trust_remote_code": "code from a checkpoint is never run",
    "enforce_eager": "nothing is compiled at the start",
    "enable_chunked_prefill": "long prompts are always cut into chunks",
    "enable_metrics": "/metrics is always there",
    "disable_cuda_graph": "graphs are the engine's choice",
    "enable_auto_tool_choice": "requests with tools may always call them",
    "disable_log_requests": "requests are never logged",
}
"""Accepted, with the reason why it changes nothing here."""

_NO_EFFECT_FLAGS = tuple(
    Flag(name=name, kind=str if name == "attention_backend" else bool, spelt=(f"--{name.replace('_', '-')}",),
         default=None if name == "attention_backend" else False, help=f"No effect: {why}.", translated=True)
    for name, why in NO_EFFECT.items()
)  # fmt: skip


def all_flags() -> Iterator[Flag]:
    for group in (ADDRESS, MODEL, LIMITS, DRAFTS, FORMATS, _NO_EFFECT_FLAGS):
        yield from group
