"""A generating request, from its bytes to its answer.

Everything up to the engine happens in a worker thread, and everything after it under the request's deadline. When the
client leaves, at whatever stage, the engine is told to forget the request.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from ling.errors import QueueFullError
from ling.server.chat import ChatAnswers
from ling.server.completions import CompletionAnswers
from ling.server.errors import ApiError, as_api_error
from ling.server.json_body import decode
from ling.server.prompts import chat_prompt, completion_prompts
from ling.server.schema import ChatRequest, CompletionRequest, validate
from ling.server.schema.strict import Model
from ling.server.service import Prepared, Service
from ling.server.session import Session
from ling.server.streamed import EventStream, unless_gone
from ling.server.times import RequestTimes

logger = logging.getLogger(__name__)

Handler = Callable[[Service, Request], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]
Result = TypeVar("Result")
Answers = ChatAnswers | CompletionAnswers


def answering(service: Service, handler: Handler) -> Endpoint:
    """Make a route of `handler`: its failures become answers, and it ends when the client leaves or time is up."""

    async def endpoint(request: Request) -> Response:
        handed_on = False
        seconds = service.settings.request_seconds
        request.state.deadline = asyncio.get_running_loop().time() + seconds if seconds else None
        try:
            async with asyncio.timeout_at(request.state.deadline):
                response: Response = await unless_gone(request, handler(service, request))
            handed_on = True
            return response
        except Exception as error:
            return explain(service, request, error).response()
        finally:
            # A stream that could not be handed on, because the client left in the same moment, is nobody's to close.
            if not handed_on and (session := getattr(request.state, "session", None)) is not None:
                session.close()

    return endpoint


def explain(service: Service, request: Request, error: Exception) -> ApiError:
    """Say what a client may know of a failure, count it, and log what is our own fault."""
    request_id = request.state.request_id
    if isinstance(error, TimeoutError):
        seconds = service.settings.request_seconds
        told = ApiError(f"not answered within {seconds:g} seconds; the request was aborted", status=504, code="timeout")
    else:
        told = as_api_error(error, request_id, serving=service.engine.alive and not service.engine.draining)
    if told.status >= 500 and not isinstance(error, ApiError | TimeoutError | QueueFullError):
        logger.error("%s failed", request_id, exc_info=error)
    service.metrics.refused.labels(str(told.status)).inc()
    return told


async def in_worker(pool: Executor, work: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(pool, work)


def read(request: Request, model: type[Model]) -> Model:
    """Decode and check a body."""
    return validate(model, decode(request.state.body))


async def chat(service: Service, request: Request) -> Response:
    def prepare() -> tuple[ChatRequest, str, Prepared]:
        asked = read(request, ChatRequest)
        model = service.name_of(asked.model)
        return asked, model, service.prepare(asked, lambda: [chat_prompt(service.tokenizer, asked)])

    times = RequestTimes(service.metrics)
    asked, model, ready = await in_worker(service.workers, prepare)
    session = _open(service, request, times)
    answers = ChatAnswers(
        asked, ready.prompts[0], service.tokenizer, id=request.state.request_id[4:], model=model, drafts=session.drafts
    )
    return await _answer(service, request, asked, ready, session, answers)


async def completions(service: Service, request: Request) -> Response:
    def prepare() -> tuple[CompletionRequest, str, Prepared]:
        asked = read(request, CompletionRequest)
        model = service.name_of(asked.model)
        return asked, model, service.prepare(asked, lambda: completion_prompts(service.tokenizer, asked))

    times = RequestTimes(service.metrics)
    asked, model, ready = await in_worker(service.workers, prepare)
    session = _open(service, request, times)
    answers = CompletionAnswers(
        asked, ready.prompts, service.tokenizer, id=request.state.request_id[4:], model=model, drafts=session.drafts
    )
    return await _answer(service, request, asked, ready, session, answers)


def _open(service: Service, request: Request, times: RequestTimes) -> Session:
    """Open the session of `request`; whoever ends the request finds it in its state."""
    session: Session = Session(service.engine, request.state.request_id, times)
    request.state.session = session
    return session


async def _answer(
    service: Service,
    request: Request,
    asked: ChatRequest | CompletionRequest,
    ready: Prepared,
    session: Session,
    answers: Answers,
) -> Response:
    salt = f"{request.state.tenant}/{asked.cache_salt or ''}".strip("/")
    session.submit([prompt.ids for prompt in ready.prompts], ready.params, grammar=ready.grammar, salt=salt)
    service.metrics.asked(ready.prompts, ready.params)
    if asked.stream:
        return EventStream(
            answers.chunks(session.deltas()),
            deadline=request.state.deadline,
            explain=lambda error: explain(service, request, error),
            close=session.close,
        )
    body: dict[str, Any]
    try:
        body = await answers.whole(session.deltas())
    finally:
        session.close()
    # Not by JSONResponse: a body of a hundred megabytes would hold the event loop for seconds.
    return Response(to_json(body, inf_nan_mode="null"), media_type="application/json")
