"""`/openapi.json`: what the routes take, for tools that read it, such as those that generate requests."""

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ling.server.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from ling.version import __version__

_POSTS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest, "/v1/completions": CompletionRequest, "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}  # fmt: skip
_GETS = ("/health", "/metrics", "/version", "/v1/models", "/tokenizer_info")

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


@cache
def openapi(*, with_key: bool) -> dict[str, Any]:
    """Return the document. Answers are described by their media types only."""
    _, shared = models_json_schema(
        [(model, "validation") for model in _POSTS.values()], ref_template="#/components/schemas/{model}"
    )
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "ling", "version": __version__},
        "paths": {
            **{path: {"get": {"responses": _responses(path)}} for path in _GETS},
            **{path: {"post": {"requestBody": _body(model.__name__), "responses": _responses(path)}}
               for path, model in _POSTS.items()},
        },
        "components": {"schemas": {**shared["$defs"], "Error": _ERROR}},
    }  # fmt: skip
    if with_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _body(name: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {"required": True, "content": content}


def _responses(path: str) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    kinds = ["text/plain"] if path == "/metrics" else ["application/json"]
    kinds += ["text/event-stream"] if path.endswith("completions") else []
    return {
        "200": {"description": "The answer.", "content": {kind: {} for kind in kinds}},
        "default": {"description": "Why not.", "content": error},
    }
