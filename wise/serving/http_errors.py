"""HTTP errors in the one shape that OpenAI's clients expect, each with its status."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from reprlib import repr as shortened
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from wise.errors import ArtifactError, ConfigError, ConflictError, EditError, StoreError, WiseError
from wise.safe_text import redacted
from wise.serving.engines import BusyError, DeadlineError, EngineError

logger = logging.getLogger(__name__)

INVALID, DENIED, MISSING, CONFLICT = "invalid_request_error", "permission_error", "not_found_error", "conflict_error"
BUSY, BROKEN = "rate_limit_error", "server_error"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
RETRY_AFTER = 2
"""Seconds after which a part that is unavailable may be available again."""
CLIENT_LEFT = 499
"""The status in the log and the metrics of a request whose client left; it is not sent."""


class ErrorDetail(BaseModel):
    message: str = Field(description="What was given, what was expected and what to do about it.")
    type: str
    param: str | None = Field(None, description="The field that is wrong.")
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in (
        (400, "The request is not valid."),
        (401, "There is no token, or it is not known."),
        (403, "The token's scope does not allow this."),
        (404, "It does not exist."),
        (408, "The body did not come in time."),
        (409, "It conflicts with what exists already."),
        (413, "The body is too large."),
        (429, "The queue is full; try again after `Retry-After` seconds."),
        (500, "Something unexpected went wrong."),
        (503, "A part is unavailable; try again after `Retry-After` seconds."),
        (504, "It took longer than it may."),
    )
}


class HTTPError(WiseError):
    """A request that cannot be done as it was asked."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.param, self.code = status, type, param, code
        self.headers = dict(headers or {})


def bad_request(message: str, param: str | None = None) -> HTTPError:
    return HTTPError(HTTPStatus.BAD_REQUEST, message, param=param)


def not_found(message: str, code: str | None = None) -> HTTPError:
    return HTTPError(HTTPStatus.NOT_FOUND, message, type=MISSING, code=code)


def conflict(message: str) -> HTTPError:
    return HTTPError(HTTPStatus.CONFLICT, message, type=CONFLICT)


def client_left() -> HTTPError:
    return HTTPError(CLIENT_LEFT, "the client left")


def unavailable(message: str) -> HTTPError:
    headers = {"Retry-After": str(RETRY_AFTER)}
    return HTTPError(HTTPStatus.SERVICE_UNAVAILABLE, message, type=BROKEN, code="unavailable", headers=headers)


HTTP_FORMS: tuple[tuple[Any, HTTPStatus, str, str | None], ...] = (
    (BusyError, HTTPStatus.TOO_MANY_REQUESTS, BUSY, "busy"),
    (DeadlineError, HTTPStatus.GATEWAY_TIMEOUT, BROKEN, "deadline"),
    (EngineError, HTTPStatus.INTERNAL_SERVER_ERROR, BROKEN, "engine"),
    (ConflictError, HTTPStatus.CONFLICT, CONFLICT, None),
    (EditError | ConfigError | ArtifactError, HTTPStatus.BAD_REQUEST, INVALID, None),
    (StoreError, HTTPStatus.SERVICE_UNAVAILABLE, BROKEN, "unavailable"),
)
"""The errors that wise raises on purpose, with status, type and code; the first that matches counts."""


def http_error(error: Exception) -> HTTPError:
    """The HTTP error for any exception; one that wise does not raise on purpose becomes a 500 and is logged."""
    if isinstance(error, HTTPError):
        return error
    if isinstance(error, RequestValidationError):
        return _validation_error(error)
    if isinstance(error, ClientDisconnect):  # while its body was read
        return client_left()
    for kinds, status, type, code in HTTP_FORMS:
        if isinstance(error, kinds):
            after = getattr(error, "retry_after", RETRY_AFTER if status == HTTPStatus.SERVICE_UNAVAILABLE else None)
            headers = {} if after is None else {"Retry-After": str(after)}
            return HTTPError(status, redacted(str(error)), type=type, code=code, headers=headers)
    logger.exception("a request failed", exc_info=error)
    message = "something unexpected went wrong; the log says what"
    return HTTPError(HTTPStatus.INTERNAL_SERVER_ERROR, message, type=BROKEN)


def error_body(error: HTTPError) -> dict[str, Any]:
    detail = ErrorDetail(message=str(error), type=error.type, param=error.param, code=error.code)
    return ErrorBody(error=detail).model_dump()


def error_response(error: Exception) -> JSONResponse:
    """The answer that says what went wrong."""
    answer = http_error(error)
    return JSONResponse(error_body(answer), status_code=answer.status, headers=answer.headers)


def _validation_error(error: RequestValidationError) -> HTTPError:
    """Names the first wrong field, its value and what was expected. If a value may have several kinds, pydantic
    reports a problem for each kind; the problem with the longest path counts."""
    problems = [(_path(problem, error.body), problem) for problem in error.errors()]
    first = problems[0][0][:1]
    path = max((path for path, _ in problems if path[:1] == first), key=len)
    at = [problem for place, problem in problems if place == path]
    expected = list(dict.fromkeys(map(_expectation, at)))
    param = ".".join(path) or (expected[0].partition(":")[0] if ":" in expected[0] else "body")
    value = at[0].get("input")
    kind = at[0]["type"]
    no_value = kind in ("missing", "extra_forbidden", "json_invalid") or (kind == "value_error" and not path)
    value_text = "" if no_value else f"{'null' if value is None else shortened(value)} was given; "
    message = f"{value_text}{', or '.join(expected)}"
    return bad_request(message if message.startswith(f"{param}:") else f"{param}: {message}", param)


def _path(problem: Mapping[str, Any], body: Any) -> tuple[str, ...]:
    """The place of an error in the body, without pydantic's own names of kinds."""
    kind, *place = problem["loc"]
    if kind != "body":
        return tuple(map(str, place))
    path: list[str] = []
    for number, part in enumerate(place, start=1):
        missing = number == len(place) and problem["type"] == "missing"
        if (isinstance(body, dict) and part in body) or (isinstance(body, list) and isinstance(part, int)):
            body = body[part]
        elif not missing:
            continue
        path.append(str(part))
    return tuple(path)


def _expectation(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "missing":
        return "it is missing; give it"
    if problem["type"] == "extra_forbidden":
        return "this field is not known here; take it out"
    if problem["type"] == "json_invalid":
        return f"body: this is not JSON ({problem['ctx']['error']})"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message.replace("Value should have at least 1 item after validation, not 0", "it must not be empty")


def install(app: FastAPI) -> None:
    """Sends errors that are raised on purpose in this shape; `RequestMiddleware` does so for all other errors."""

    async def on_error(_request: Request, error: Exception) -> JSONResponse:
        return error_response(error)

    async def on_http_exception(request: Request, error: Any) -> JSONResponse:
        status, headers = error.status_code, error.headers
        kind = MISSING if status == HTTPStatus.NOT_FOUND else INVALID
        if status == HTTPStatus.METHOD_NOT_ALLOWED:  # the framework names the methods of the path's first route alone
            scopes = {method: {**request.scope, "method": method} for method in METHODS}
            methods = [m for m, scope in scopes.items() if any(r.matches(scope)[0] is Match.FULL for r in app.routes)]
            headers = {"Allow": ", ".join(methods)}
        return error_response(HTTPError(status, str(error.detail), type=kind, headers=headers))

    app.add_exception_handler(HTTPException, on_http_exception)
    for kind in (RequestValidationError, WiseError):
        app.add_exception_handler(kind, on_error)
