"""Errors as OpenAI's clients expect them: one shape, whatever went wrong, with the status that it deserves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from wise.errors import ArtifactError, ConfigError, EditError, StoreError, WiseError
from wise.serve.engine import BusyError, DeadlineError, EngineError

logger = logging.getLogger(__name__)

INVALID, DENIED, MISSING, CONFLICT = "invalid_request_error", "permission_error", "not_found_error", "conflict_error"
BUSY, BROKEN = "rate_limit_error", "server_error"
RETRY_LATER = 2
"""Seconds after which a part that is not there may be there again."""


class ErrorDetail(BaseModel):
    message: str = Field(description="What was given, what was expected and what to do about it.")
    type: str
    param: str | None = Field(None, description="The field that is wrong.")
    code: str | None = None


class ErrorBody(BaseModel):
    """What every answer that is no success holds."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": said}
    for status, said in (
        (400, "The request is not valid."),
        (401, "No token, or one that is not known."),
        (403, "The token's scope does not cover this."),
        (404, "There is no such thing."),
        (409, "It goes against what is there already."),
        (413, "The body is too large."),
        (429, "Too much is waiting; try again after `Retry-After` seconds."),
        (500, "Something unexpected went wrong."),
        (503, "A part is not there; try again after `Retry-After` seconds."),
        (504, "It took longer than it may."),
    )
}
"""For the schema: the status of each answer that is no success."""


class Problem(WiseError):
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


def invalid(message: str, param: str | None = None) -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, message, param=param)


def missing(message: str, code: str | None = None) -> Problem:
    return Problem(HTTPStatus.NOT_FOUND, message, type=MISSING, code=code)


def conflict(message: str) -> Problem:
    return Problem(HTTPStatus.CONFLICT, message, type=CONFLICT)


def unavailable(message: str) -> Problem:
    later = {"Retry-After": str(RETRY_LATER)}
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, message, type=BROKEN, code="unavailable", headers=later)


def problem_of(error: Exception) -> Problem:
    """Any error that wise raises on purpose, as a Problem; others are the service's own fault."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, BusyError):
        later = {"Retry-After": str(error.retry_after)}
        return Problem(HTTPStatus.TOO_MANY_REQUESTS, str(error), type=BUSY, code="busy", headers=later)
    if isinstance(error, DeadlineError):
        return Problem(HTTPStatus.GATEWAY_TIMEOUT, str(error), type=BROKEN, code="deadline")
    if isinstance(error, EngineError):
        return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, str(error), type=BROKEN, code="engine")
    if isinstance(error, EditError | ConfigError | ArtifactError):
        return invalid(str(error))
    if isinstance(error, StoreError):
        return unavailable(str(error))
    logger.exception("a request failed", exc_info=error)
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR, "something unexpected went wrong; the log says what", type=BROKEN
    )


def body_of(problem: Problem) -> dict[str, Any]:
    detail = ErrorDetail(message=str(problem), type=problem.type, param=problem.param, code=problem.code)
    return ErrorBody(error=detail).model_dump()


def response_of(error: Exception) -> JSONResponse:
    problem = problem_of(error)
    return JSONResponse(body_of(problem), status_code=problem.status, headers=problem.headers)


def install(app: FastAPI) -> None:
    """Every error leaves in this shape."""

    async def ours(_request: Request, error: Exception) -> JSONResponse:
        return response_of(error)

    async def validation(_request: Request, error: Exception) -> JSONResponse:
        first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
        place = [str(part) for part in first.get("loc", ())]
        param = ".".join(place[1:]) or (place[0] if place else None)
        return response_of(invalid(f"{param}: {first.get('msg', 'not valid')}", param))

    async def http(_request: Request, error: Exception) -> JSONResponse:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = getattr(error, "headers", None) or {}
        kind = MISSING if status == HTTPStatus.NOT_FOUND else INVALID
        said = getattr(error, "detail", None) or HTTPStatus(status).phrase
        return response_of(Problem(status, str(said), type=kind, headers=headers))

    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(WiseError, ours)
    app.add_exception_handler(Exception, ours)
