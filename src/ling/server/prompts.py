"""Requests to token ids. Called in a worker thread: long texts take a while."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from ling.server.errors import ApiError
from ling.server.schema import ChatRequest, CompletionRequest, Message, TokenizeRequest
from ling.server.schema.chat import TemplateOptions
from ling.tokenizer import Tokenizer, encode_chat

MOST_JUDGED = 2**22
"""Log-probabilities of prompts in one answer, about 100 MB of JSON: twenty for each token of a context of 128K."""

CHARACTERS_PER_TOKEN, LEAST_CHARACTERS = 16, 2**20
"""Of a prompt, by the length of the context, and however short that is; text has four or five a token."""


@dataclass(frozen=True, slots=True)
class Prompt:
    ids: list[int]
    text: str | None = None
    """As it was sent; None: as ids."""


def chat_prompt(tokenizer: Tokenizer, request: ChatRequest | TokenizeRequest) -> Prompt:
    """Render messages; tools that must not be called are not shown to the model."""
    tools: list[dict[str, Any]] = [tool.model_dump(exclude_unset=True) for tool in request.tools]
    if isinstance(request, ChatRequest) and not request.may_call:
        tools = []
    ids, _ = encode_chat(
        tokenizer, _plain(request.messages or []), tools=tools or None,
        thinking=_thinking(request.chat_template_kwargs),
        add_generation_prompt=request.add_generation_prompt is not False,
    )  # fmt: skip
    return Prompt(ids)


def smallest_length(request: ChatRequest | CompletionRequest, longest_token: int) -> int:
    """Return how many tokens the longest text of a request has at least: cheap to say before it is encoded."""
    if isinstance(request, CompletionRequest):
        size = max(map(len, _texts(request.prompt)), default=0)  # a character has a byte or more
    else:
        size = sum(len(message.content or "") for message in request.messages)
        size += _size_of_tools(request) if request.may_call else 0
    return -(-size // longest_token)


def check_size(request: ChatRequest | CompletionRequest | TokenizeRequest, max_model_len: int) -> None:
    """Refuse a text that is encoded as one and could not fit the context however well it is packed.

    Encoding takes memory, a few hundred bytes a character, and holds up whatever else the process does.
    """
    prompt = request.prompt if isinstance(request, CompletionRequest | TokenizeRequest) else None
    if prompt is not None:
        size = max(map(len, _texts(prompt)), default=0)
    else:
        messages = (request.messages or []) if isinstance(request, ChatRequest | TokenizeRequest) else []
        size = sum(map(_size_of, messages)) + _size_of_tools(request)
    if size > (most := max(LEAST_CHARACTERS, CHARACTERS_PER_TOKEN * max_model_len)):
        raise ApiError(
            f"the text has {size} characters; at most {most} are taken, the context being {max_model_len} tokens",
            param="messages" if prompt is None else "prompt", code="context_length_exceeded",
        )  # fmt: skip


def _size_of(message: Message) -> int:
    called = sum(len(call.function.arguments) for call in message.tool_calls or ())
    return len(message.content or "") + len(message.reasoning_content or "") + called


def _size_of_tools(request: ChatRequest | CompletionRequest | TokenizeRequest) -> int:
    """Return the least bytes that the tools of a request have in a prompt."""
    if isinstance(request, CompletionRequest):
        return 0
    return sum(len(to_json(tool.model_dump(exclude_unset=True))) for tool in request.tools)


def completion_prompts(tokenizer: Tokenizer, request: CompletionRequest) -> list[Prompt]:
    """Encode texts as they are: special tokens spelt in them act as such, as chat formats rendered by clients need."""
    given = _several(request.prompt)
    prompts = [Prompt(tokenizer.encode(p), p) if isinstance(p, str) else Prompt(list(p)) for p in given]
    for prompt in prompts:
        if not prompt.ids:
            raise ApiError("prompt must not be empty", param="prompt")
        check_ids(tokenizer.vocab_size, prompt.ids, "prompt")
    return prompts


def check_judged(request: ChatRequest | CompletionRequest, prompts: Sequence[Prompt]) -> None:
    """Refuse to judge prompts where that makes an answer of hundreds of megabytes out of a small request."""
    tokens = sum(len(prompt.ids) for prompt in prompts)
    asked = {"prompt_logprobs": (request.prompt_logprobs, 1)}
    if isinstance(request, CompletionRequest) and request.echo:
        asked["logprobs"] = request.logprobs, request.n  # each answer begins with its prompt
    for name, (top, times) in asked.items():
        if top is not None and (count := tokens * (top + 1) * times) > MOST_JUDGED:
            raise ApiError(
                f"{name} {top} of {tokens} prompt tokens is {count} log-probabilities in one answer; at most "
                f"{MOST_JUDGED} are given: ask for fewer, or of fewer prompts at once",
                param=name,
            )


def _several(prompt: Any) -> list[Any]:
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt


def _texts(prompt: Any) -> list[str]:
    return [text for text in _several(prompt) if isinstance(text, str)]


def check_ids(vocab_size: int, ids: Collection[int], param: str) -> None:
    """Refuse ids that are not in the vocabulary."""
    if ids and (largest := max(ids)) >= vocab_size:
        raise ApiError(f"token id {largest} is beyond the vocabulary of {vocab_size}", param=param)


def _thinking(options: TemplateOptions | None) -> Any:
    if options is None:
        return "off"
    given = {value for value in (options.thinking, options.enable_thinking) if value is not None}
    if len(given) > 1:
        raise ApiError("thinking and enable_thinking contradict each other", param="chat_template_kwargs")
    return "on" if True in given else "off"


def _plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as the renderer takes them, the answers of tools in the order of the calls."""
    plain: list[dict[str, Any]] = []
    calls: list[str] = []
    """Ids of the latest answer's calls."""
    index = 0
    while index < len(messages):
        message = messages[index]
        if message.role != "tool":
            calls = [call.id for call in message.tool_calls or ()]
            if len(set(calls)) < len(calls):
                raise ApiError("two of the tool calls have the same id", param=f"messages[{index}].tool_calls")
            plain.append(_one(message))
            index += 1
            continue
        answers: dict[str, Message] = {}
        start = index
        while index < len(messages) and messages[index].role == "tool":
            id = messages[index].tool_call_id or ""
            if id not in calls or id in answers:
                what = "is answered twice" if id in answers else "belongs to no call of the message before"
                raise ApiError(f"this tool_call_id {what}", param=f"messages[{index}].tool_call_id")
            answers[id] = messages[index]
            index += 1
        if missing := len(calls) - len(answers):
            raise ApiError(
                f"{missing} of the tool calls before have no answer; each needs a tool message",
                param=f"messages[{start - 1}].tool_calls",
            )
        plain += [_one(answers[id]) for id in calls]
        calls = []
    return plain


def _one(message: Message) -> dict[str, Any]:
    kept = message.model_dump(include={"role", "content", "reasoning_content", "tool_calls"}, exclude_none=True)
    return kept | {"role": "system" if message.role == "developer" else message.role}
