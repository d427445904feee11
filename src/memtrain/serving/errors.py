"""Every refusal in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``, one sentence, never a trace."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

from memtrain.errors import UserError, first_line
from memtrain.serving.contract import NOT_BLANK, REFUSED, SESSION_RULE, clean
from memtrain.serving.store import Conflict, StoreError

LOG = logging.getLogger("memtrain.serving")
MOST_CHARS = 500
"""Longest sentence of a refusal: it may quote what was sent."""
UNEXPECTED = "the server failed on this request; its log has the details"
NO_STORE = "the store of the sessions does not answer; nothing of this request was kept, the server's log says why"
MOVED_ON = "the session moved on while this request was answered; read its state and send the request again"

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every refusal."""

    error: ErrorDetail


class ApiError(HTTPException):
    """A refusal with its status and sentence; may be raised anywhere below the application."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, retry_after: float = 0
    ) -> None:
        """``retry_after``: seconds after which the same request may go through; 0 says nothing of it."""
        headers = {"Retry-After": str(max(1, round(retry_after)))} if retry_after else None
        super().__init__(status, message, headers)
        self.code, self.param = code, param


class UpstreamError(UserError):
    """The server in front of which this one stands did not answer as it should; ``status`` is passed on."""

    def __init__(self, message: str, status: int = 502) -> None:
        super().__init__(message)
        self.status = status


def as_refusal(error: BaseException) -> ApiError:
    """Any error as a refusal; one that nobody foresaw is logged here and told in one sentence."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, f"{error.detail}")
    if isinstance(error, Conflict):
        return ApiError(409, MOVED_ON, code="session_moved_on")
    if isinstance(error, StoreError):
        LOG.error("%s", error)
        return ApiError(503, NO_STORE, code="store", retry_after=5)
    if isinstance(error, UpstreamError):
        return ApiError(error.status, str(error), code="upstream", retry_after=1 if error.status in (429, 503) else 0)
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    LOG.error("a request failed: %s", first_line(error), exc_info=error)
    return ApiError(500, UNEXPECTED, code="internal")


def body_of(refusal: ApiError) -> dict[str, Any]:
    """The JSON of a refusal."""
    status = refusal.status_code
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    message = clean(refusal.detail)
    if len(message) > MOST_CHARS:
        message = message[: MOST_CHARS - 1] + "…"
    detail = ErrorDetail(message=message, type=kind, param=refusal.param, code=refusal.code)
    return ErrorBody(error=detail).model_dump()


def response_of(refusal: ApiError) -> JSONResponse:
    """The answer that refuses."""
    return JSONResponse(body_of(refusal), refusal.status_code, refusal.headers)


def install(app: FastAPI) -> None:
    """Make the application answer every error so."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        return response_of(as_refusal(error))

    async def routing(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error, ApiError):
            return response_of(error)
        message = {
            400: "the body cannot be read as JSON",
            404: f"there is no {request.url.path} here",
            405: f"{request.url.path} does not take {request.method}",
        }.get(error.status_code, str(error.detail))
        answer = response_of(ApiError(error.status_code, message))
        answer.headers.update(error.headers or {})
        if error.status_code == 405:
            answer.headers["Allow"] = ", ".join(_methods(request))
        return answer

    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return response_of(_explain(error))

    app.add_exception_handler(HTTPException, routing)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]
    for kind in (UserError, Conflict, Exception):
        app.add_exception_handler(kind, known)


def _methods(request: Request) -> list[str]:
    """What the path takes, over all of its routes: each route alone knows its own."""
    scope = request.scope
    return [
        method
        for method in ("GET", "POST", "PUT", "DELETE")
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]


def _explain(error: RequestValidationError) -> ApiError:
    """The problem that tells most, in one sentence that names the field."""
    problems = error.errors()
    if not problems:
        return ApiError(400, "the request is not valid")
    for problem in problems:
        refused = _refused(problem)
        if refused is not None:
            return ApiError(400, refused, param=str(problem["loc"][1]), code="unsupported")
    # Where a value fits none of several shapes, the problem that lies deepest is about the shape that was meant.
    problem = max(problems, key=lambda one: len(one["loc"]))
    kind, place = problem["type"], [part for part in problem["loc"][1:] if not _is_branch(part)]
    if kind == "json_invalid":
        return ApiError(400, f"the body is not JSON: {problem.get('ctx', {}).get('error', 'it cannot be read')}")
    param = clean(".".join(str(part) for part in place))[:100]
    if param.lower().replace("-", "_") in ("session", "session_id", "x_session_id"):
        return ApiError(400, SESSION_RULE, param=param)
    if kind == "union_tag_invalid":
        tag = clean(str(problem.get("ctx", {}).get("tag")))[:50]
        return ApiError(400, f"{param}: only text and file parts are read, not {tag}", param=param, code="unsupported")
    message = str(problem["msg"]).removeprefix("Value error, ")
    if kind == "string_pattern_mismatch" and problem.get("ctx", {}).get("pattern") == NOT_BLANK:
        message = "must not be blank"
    message = message[:1].lower() + message[1:]
    if not place:
        return ApiError(400, message if kind == "value_error" else "the body must be a JSON object")
    return ApiError(400, f"{param}: {message}", param=param)


def _refused(problem: dict[str, Any]) -> str | None:
    """The sentence of a field that this server knows and does not take."""
    place = problem["loc"]
    return REFUSED.get(str(place[1])) if len(place) > 1 and place[0] == "body" else None


def _is_branch(part: Any) -> bool:
    """Whether a part of a place is no field but pydantic's name of a shape that was tried."""
    return isinstance(part, str) and (part == "str" or "[" in part)
