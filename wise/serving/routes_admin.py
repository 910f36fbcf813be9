"""Routes for operators: `/health`, `/ready`, `/metrics`, and `/console`, a static page that uses the other routes.

Health and readiness need no token, because the probes that ask have none.
"""

from __future__ import annotations

from datetime import datetime
from importlib.resources import files
from pathlib import PurePath

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, Field

from wise.serving.auth import AuthorizedRoute, Reader, details_allowed, requires_metrics
from wise.serving.editor_client import FAILING, READY
from wise.serving.http_errors import ERRORS, not_found, unavailable
from wise.serving.service import Served

router = APIRouter(tags=["operation"], route_class=AuthorizedRoute)
console = APIRouter(include_in_schema=False)
CONSOLE = files("wise.serving") / "console"
PAGE = "console.html"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
CONSOLE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Health(BaseModel):
    status: str = "ok"


class Readiness(BaseModel):
    """Whoever gives no token is told the status alone."""

    status: str = "ready"
    version: int | None = None
    edits: int | None = None
    editor: str | None = None


class TokenView(BaseModel):
    name: str
    scope: str = Field(description="`reader`, `editor` or `admin`; each includes those before it.")
    until: datetime | None = Field(description="When it expires.")


@router.get("/health")
async def health(service: Served) -> Health:
    """Whether the process works; 503 if it must be restarted."""
    if not service.engine.alive:
        raise unavailable("the engine has ended; see the log, and start the service again")
    return Health()


@router.get("/ready", response_model_exclude_none=True)
async def ready(request: Request, service: Served) -> Readiness:
    """Whether requests should come here; 503 with the reason if not. With a reader's token it says more."""
    why = service.not_ready()
    if why is not None:
        raise unavailable(why)
    if not details_allowed(request):
        return Readiness()
    current = service.follower.current
    return Readiness(version=current.version, edits=len(current.edits), editor=service.editor.state)


@router.get("/v1/token", responses={status: ERRORS[status] for status in (401, 403)})
async def token(holder: Reader) -> TokenView:
    """Who the request's token belongs to, and what it allows."""
    return TokenView(name=holder.name, scope=holder.scope, until=holder.until)


@router.get(
    "/metrics",
    response_class=Response,
    dependencies=[Depends(requires_metrics)],
    responses={status: ERRORS[status] for status in (401, 403)},
)
async def metrics(service: Served) -> Response:
    """In the format of Prometheus; needs a reader's token, unless `open_metrics` is set."""
    service.metrics.set_editor(service.editor.state, up=service.editor.state in (READY, FAILING))
    service.metrics.set_queue(*await run_in_threadpool(service.follower.queue))
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@console.get("/")
async def root() -> RedirectResponse:
    return RedirectResponse("/console")


@console.get("/console")
async def page() -> Response:
    return _console_file(PAGE)


@console.get("/console/{name}")
async def console_file(name: str) -> Response:
    if name == PAGE or name not in {file.name for file in CONSOLE.iterdir()}:
        raise not_found(f"the console has no file {name!r:.80}; its page is /console")
    return _console_file(name)


def _console_file(name: str) -> Response:
    file = CONSOLE / name
    media_type = MEDIA_TYPES[PurePath(name).suffix]
    return Response(
        file.read_text(encoding="utf-8"), media_type=f"{media_type}; charset=utf-8", headers=CONSOLE_HEADERS
    )
