"""The routes."""

from typing import Any

from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ling.server.endpoints import answering, chat, completions, in_worker, read
from ling.server.errors import ApiError
from ling.server.guard import Guard
from ling.server.openapi import openapi
from ling.server.page import read_page
from ling.server.prompts import chat_prompt, check_ids, check_size
from ling.server.schema import DetokenizeRequest, TokenizeRequest
from ling.server.service import Service
from ling.tokenizer.template import SFT_TEMPLATE
from ling.version import __version__

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def build_app(service: Service) -> Guard:
    """Return the whole application. Every route but those in `guard.OPEN` needs a key where there are keys."""
    gets = {
        "/": page, "/health": health, "/metrics": metrics, "/version": version, "/v1/models": models,
        "/v1/models/{model:path}": one_model, "/tokenizer_info": tokenizer_info, "/openapi.json": description,
    }  # fmt: skip
    posts = {
        "/v1/chat/completions": chat, "/v1/completions": completions, "/tokenize": tokenize,
        "/detokenize": detokenize,
    }  # fmt: skip
    routes = [Route(path, answering(service, handler), methods=["GET"]) for path, handler in gets.items()]
    routes += [Route(path, answering(service, handler), methods=["POST"]) for path, handler in posts.items()]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _no_route})
    app.router.redirect_slashes = False
    return Guard(app, service.settings)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), error
    method, path = request.method[:16], request.url.path[:100]
    what = f"there is no {path} here" if error.status_code == 404 else f"{path} does not take {method}"
    response = ApiError(what, status=error.status_code).response()
    response.headers.update(error.headers or {})
    return response


async def page(service: Service, request: Request) -> Response:
    """A chat in the browser."""
    content, headers = read_page()
    return Response(content, headers=headers)


async def health(service: Service, request: Request) -> Response:
    if (why := service.why_unhealthy()) is not None:
        raise ApiError(why, status=503, code="unhealthy", retry_seconds=10)
    return JSONResponse({"status": "ok"})


async def metrics(service: Service, request: Request) -> Response:
    return Response(service.metrics.text(), media_type=PROMETHEUS)


async def version(service: Service, request: Request) -> Response:
    return JSONResponse({"version": __version__})


async def description(service: Service, request: Request) -> Response:
    return JSONResponse(openapi(with_key=bool(service.settings.api_keys)))


async def models(service: Service, request: Request) -> Response:
    data = [_model(service, name) for name in service.settings.served_names]
    return JSONResponse({"object": "list", "data": data})


async def one_model(service: Service, request: Request) -> Response:
    return JSONResponse(_model(service, service.name_of(request.path_params["model"])))


def _model(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name, "object": "model", "created": service.started, "owned_by": "ling",
        "root": service.settings.root or name, "parent": None, "max_model_len": service.max_model_len,
    }  # fmt: skip


async def tokenize(service: Service, request: Request) -> Response:
    def work() -> bytes:
        asked = read(request, TokenizeRequest)
        service.name_of(asked.model)
        check_size(asked, service.max_model_len)
        tokenizer = service.tokenizer
        ids = chat_prompt(tokenizer, asked).ids if asked.prompt is None else tokenizer.encode(asked.prompt)
        spelt = [tokenizer.decode([id]) for id in ids] if asked.return_token_strs else None
        return to_json({"count": len(ids), "max_model_len": service.max_model_len, "tokens": ids, "token_strs": spelt})

    return Response(await in_worker(service.tokenizing, work), media_type="application/json")


async def detokenize(service: Service, request: Request) -> Response:
    def work() -> bytes:
        asked = read(request, DetokenizeRequest)
        service.name_of(asked.model)
        check_ids(service.tokenizer.vocab_size, asked.tokens, "tokens")
        return to_json({"prompt": service.tokenizer.decode(asked.tokens)})

    return Response(await in_worker(service.tokenizing, work), media_type="application/json")


async def tokenizer_info(service: Service, request: Request) -> Response:
    """What lm-evaluation-harness asks for before it uses the server's tokenizer."""
    tokenizer = service.tokenizer
    named = {f"{name}_token": tokenizer.decode([getattr(tokenizer, f"{name}_id")]) for name in ("bos", "eos", "pad")}
    return JSONResponse(
        {
            **named, "tokenizer_class": "PreTrainedTokenizerFast", "vocab_size": tokenizer.vocab_size,
            "model_max_length": service.max_model_len, "chat_template": SFT_TEMPLATE,
        }
    )  # fmt: skip
