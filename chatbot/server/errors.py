"""Errors on HTTP: ``{"error": {"code", "message", ...}}`` with the status of the exception.

An unexpected exception is logged and answered with 500 and no text of its own.
"""

from collections.abc import Callable
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from chatbot.errors import FrontdeskError, NotAuthenticated, Overloaded
from chatbot.server.limits import limit_of

log = structlog.get_logger()
INTERNAL = "something went wrong on our side; the server's log says what"
# data of an exception that the peer may have, beside code and message
SHOWN = ("run_id", "reasons", "hold_id")
HTTP_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_incomplete",
    413: "too_large",
}


class ErrorDetail(BaseModel):
    """``code`` is for programs, ``message`` for people."""

    model_config = ConfigDict(extra="allow")

    code: str | None
    message: str


class ErrorAnswer(BaseModel):
    """What every answer looks like that is not a success."""

    error: ErrorDetail


def install_error_handlers(app: FastAPI, limited: Callable[[str | None], None]) -> None:
    """Give every route of ``app`` the one form of errors. ``limited(name)`` counts what was refused
    because of a limit; the name is None for every other error."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, FrontdeskError)  # what it is installed for
        limited(limit_of(error))
        return _known(request, error)

    app.add_exception_handler(FrontdeskError, known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def error_body(error: FrontdeskError) -> dict[str, Any]:
    """The answer's JSON; ``retry_after`` is in seconds."""
    body: dict[str, Any] = {"code": error.code, "message": str(error)}
    if isinstance(error, Overloaded):
        body["retry_after"] = error.retry_after
    body.update({name: error.data[name] for name in SHOWN if name in error.data})
    return {"error": body}


def problem(path: str, code: str, message: str) -> dict[str, Any]:
    """The answer's JSON for what no exception of ours tells; below ``/v1`` in OpenAI's form."""
    told: dict[str, Any] = {"code": code, "message": message}
    if path == "/v1" or path.startswith("/v1/"):
        told |= {"type": "invalid_request_error", "param": None}
    return {"error": told}


def _known(request: Request, error: FrontdeskError) -> JSONResponse:
    headers = {}
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    if isinstance(error, NotAuthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if error.http_status >= 500:
        log.warning("http.failed", path=request.url.path, code=error.code, error=str(error))
    return JSONResponse(error_body(error), error.http_status, headers)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [
        f"{'.'.join(str(part) for part in item['loc'][1:]) or 'body'}: {item['msg']}"
        for item in error.errors()
    ]
    return JSONResponse({"error": {"code": "bad_request", "message": "; ".join(problems)}}, 422)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = HTTP_CODES.get(error.status_code, "http")
    body = problem(request.url.path, code, str(error.detail))
    return JSONResponse(body, error.status_code, error.headers)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("http.failed", path=request.url.path, exc_info=error)
    return JSONResponse({"error": {"code": "internal", "message": INTERNAL}}, 500)
