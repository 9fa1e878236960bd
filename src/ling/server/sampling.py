"""Requests to `SamplingParams`: what a request leaves open is as the model's generation_config.json has it."""

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from ling.engine.request import SamplingParams, StructuredOutputsParams
from ling.errors import CheckpointError
from ling.server.errors import ApiError
from ling.server.schema import ChatRequest, CompletionRequest, GenerationRequest

_ID = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """How an answer is sampled where the request does not say. What the model's files do not say is as OpenAI's."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def of_model(cls, directory: Path) -> Self:
        """Read generation_config.json, if there is one. Raises CheckpointError if it cannot be meant."""
        path = directory / "generation_config.json"
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            given: dict[str, Any] = {
                field.name: (int if field.name == "top_k" else float)(tree[field.name])
                for field in fields(cls)
                if tree.get(field.name) is not None
            }
            SamplingParams(**given)
        except FileNotFoundError:
            return cls()
        except Exception as error:
            raise CheckpointError(f"{path} cannot be used: {error}. Mend it or copy it again.") from None
        return cls(**given)

    @property
    def described(self) -> str:
        """Say what differs from OpenAI's defaults."""
        own = [f"{f.name} {getattr(self, f.name):g}" for f in fields(self) if getattr(self, f.name) != f.default]
        return ", ".join(own) or "as OpenAI's (temperature 1)"


def sampling_params(
    request: GenerationRequest,
    defaults: SamplingDefaults,
    *,
    room: int,
    structured_outputs: StructuredOutputsParams | None,
) -> SamplingParams:
    """Say how the answers to `request` are sampled.

    room  tokens of the context that its longest prompt leaves; the limit where the request sets none
    Raises RequestError or ApiError for values that do not fit together.
    """
    sampled = {
        field.name: getattr(defaults if getattr(request, field.name) is None else request, field.name)
        for field in fields(SamplingDefaults)
    }
    stop = [request.stop] if isinstance(request.stop, str) else list(request.stop)
    return SamplingParams(
        **sampled,
        n=request.n,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=_logit_bias(request.logit_bias),
        stop=stop,
        include_stop_str_in_output=request.include_stop_str_in_output,
        stop_token_ids=request.stop_token_ids,
        ignore_eos=request.ignore_eos,
        skip_special_tokens=request.skip_special_tokens,
        max_tokens=_max_tokens(request, room),
        min_tokens=request.min_tokens,
        seed=request.seed,
        structured_outputs=structured_outputs,
        **_logprobs(request),
    )


def _max_tokens(request: GenerationRequest, room: int) -> int:
    if isinstance(request, ChatRequest):
        asked = request.max_completion_tokens or request.max_tokens
    elif request.max_tokens == 0:
        return 1  # only the prompt is judged: the token is made and dropped
    else:
        asked = request.max_tokens if "max_tokens" in request.model_fields_set else min(request.max_tokens or 1, room)
    return room if asked is None else asked


def _logprobs(request: GenerationRequest) -> dict[str, Any]:
    if isinstance(request, ChatRequest):
        return {
            "logprobs": (request.top_logprobs or 0) if request.logprobs else None,
            "prompt_logprobs": request.prompt_logprobs,
        }
    assert isinstance(request, CompletionRequest)
    asked = [n for n in (request.prompt_logprobs, request.logprobs if request.echo else None) if n is not None]
    return {"logprobs": request.logprobs, "prompt_logprobs": max(asked, default=None)}


def _logit_bias(asked: dict[str, float]) -> dict[int, float]:
    for id in asked:
        if not _ID.fullmatch(id):
            raise ApiError("the keys of logit_bias must be token ids in decimal", param="logit_bias")
    return {int(id): bias for id, bias in asked.items()}
