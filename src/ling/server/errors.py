"""What the API calls an error: `{"error": {"message", "type", "param", "code"}}`, and nothing of our insides."""

from typing import Any

from starlette.responses import JSONResponse

from ling.errors import DataError, LingError, QueueFullError, RequestError


class ApiError(Exception):
    """An answer other than the one asked for."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None,
        retry_seconds: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.param, self.code, self.retry_seconds = status, param, code, retry_seconds

    @property
    def body(self) -> dict[str, Any]:
        error = {"message": str(self), "type": _type(self.status), "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        headers = {}
        if self.retry_seconds is not None:
            headers["Retry-After"] = str(self.retry_seconds)
        elif self.status >= 500:
            headers["X-Should-Retry"] = "false"  # the official client would ask twice more
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def as_api_error(error: Exception, request_id: str, *, serving: bool = True) -> ApiError:
    """Say what a client may know of `error`; of what is our fault only the id under which the log has the rest.

    serving  whether the engine still takes requests: what does not fit its queue now will fit later
    """
    match error:
        case ApiError():
            return error
        case QueueFullError() if serving:
            return ApiError(str(error), status=429, code="queue_full", retry_seconds=1)
        case QueueFullError():
            return ApiError(str(error), status=503, code="unavailable", retry_seconds=10)
        case RequestError() | DataError():
            return ApiError(str(error), param=_named_in(str(error)))
    if isinstance(error, LingError):
        return ApiError(f"the engine refused this request: {error}", status=500, code="engine")
    return ApiError(f"internal error; the server's log has more under {request_id}", status=500, code="internal")


def _type(status: int) -> str:
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 404:
            return "not_found_error"
        case 429:
            return "rate_limit_error"
        case 503:
            return "service_unavailable_error"
        case 408 | 504:
            return "timeout_error"
    return "invalid_request_error" if status < 500 else "server_error"


_FIRST_WORDS = frozenset(
    {
        "n", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
        "logprobs", "prompt_logprobs", "max_tokens", "min_tokens", "seed", "logit_bias", "stop", "stop_token_ids",
        "structured_outputs",
    }
)  # fmt: skip


def _named_in(message: str) -> str | None:
    """Give the field that an engine's message is about: it begins with its name."""
    word = message.partition(" ")[0]
    return word if word in _FIRST_WORDS else None
