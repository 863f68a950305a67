"""Errors in OpenAI's form: ``{"error": {"message", "type", "param", "code"}}``."""

from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from chatbot import errors
from chatbot.server.errors import INTERNAL

log = structlog.get_logger()
CLOSED = 499  # nobody reads it; nginx's number for a client that has gone


class Refused(errors.RequestRefused):
    """A parameter that is wrong. ``param`` names it, ``code`` is OpenAI's word for why."""

    http_status = 400

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message, param=param, openai_code=code)


class NoSuchModel(errors.NotFound):
    def __init__(self, name: str) -> None:
        super().__init__(
            f"the model {name!r} does not exist: GET /v1/models lists those that do",
            param="model",
            openai_code="model_not_found",
        )


# (kind, HTTP status, type, code; None: the error's own)
_FORMS: tuple[tuple[type[errors.FrontdeskError], int, str, str | None], ...] = (
    (errors.NotAuthenticated, 401, "invalid_request_error", "invalid_api_key"),
    (errors.AccessError, 403, "permission_error", None),
    (errors.NotFound, 404, "invalid_request_error", None),
    (errors.InputError, 400, "invalid_request_error", None),
    (errors.Conflict, 409, "invalid_request_error", None),
    (errors.Overloaded, 429, "rate_limit_error", None),
    (errors.StorageFull, 503, "server_error", None),
    (errors.StoreUnavailable, 503, "server_error", None),
    (errors.ReplyLost, 503, "server_error", None),
)


def status_of(error: errors.FrontdeskError) -> int:
    return next((form[1] for form in _FORMS if isinstance(error, form[0])), 500)


def error_body(error: errors.FrontdeskError) -> dict[str, Any]:
    """The JSON that tells it."""
    form = next((form for form in _FORMS if isinstance(error, form[0])), None)
    kind, code = ("server_error", None) if form is None else form[2:]
    param = error.data.get("param")
    if isinstance(error, errors.PromptTooLong):
        param = "messages"
    told = error.data.get("openai_code") or code or error.code
    return {"error": {"message": str(error), "type": kind, "param": param, "code": told}}


def internal_body() -> dict[str, Any]:
    """What is told of an error that we did not expect."""
    return {
        "error": {"message": INTERNAL, "type": "server_error", "param": None, "code": "internal"}
    }


def answer(error: errors.FrontdeskError) -> Response:
    headers = {}
    if isinstance(error, errors.Overloaded):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    if isinstance(error, errors.NotAuthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error), status_of(error), headers)


class OpenAiRoute(APIRoute):
    """A route whose errors have OpenAI's form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except errors.FrontdeskError as error:
                if status_of(error) >= 500:
                    log.warning("completions.failed", code=error.code, error=str(error))
                return answer(error)
            except HTTPException:  # a body that is too large, or stops coming
                raise
            except ClientDisconnect:
                return Response(status_code=CLOSED)
            except Exception as error:
                log.error("completions.failed", path=request.url.path, exc_info=error)
                return JSONResponse(internal_body(), 500)

        return handler
