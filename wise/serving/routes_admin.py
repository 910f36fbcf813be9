"""Routes for operators: `/health`, `/ready`, `/metrics`, and `/console`, a static page that uses the other routes.

Health and readiness need no token, because the probes that ask have none.
"""

from __future__ import annotations

import time
from datetime import datetime
from importlib.resources import files
from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, Field

from wise.serving.auth import READER, AuthorizedRoute, NamespaceReader, Reader, details_allowed, requires
from wise.serving.editor_client import FAILING, READY, STATES
from wise.serving.http_errors import ERRORS, not_found, unavailable
from wise.serving.service import ServiceDep

router = APIRouter(tags=["operation"], route_class=AuthorizedRoute)
console = APIRouter(include_in_schema=False)
DENIED: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (401, 403)}
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
    """Without a token only the status is given."""

    status: str = "ready"
    version: int | None = None
    edits: int | None = None
    editor: str | None = None
    editing: Annotated[str | None, Field(description="Why edits are not trained; left out if they are.")] = None


class TokenView(BaseModel):
    name: str
    scope: str = Field(description="`reader`, `editor` or `admin`; each includes those before it.")
    until: datetime | None = Field(description="When it expires.")
    namespaces: list[str] | None = Field(description="The namespaces that it sees and edits alone; null for all.")


@router.head("/health", include_in_schema=False)  # some probes ask so
@router.get("/health")
async def health(service: ServiceDep) -> Health:
    """Whether the process works; 503 if it must be restarted."""
    if not service.engine.alive:
        raise unavailable("the engine has ended; see the log, and start the service again")
    return Health()


@router.head("/ready", include_in_schema=False)
@router.get("/ready", response_model_exclude_none=True)
async def ready(request: Request, service: ServiceDep) -> Readiness:
    """Whether requests should come here, for answers; 503 with the reason if not.

    With a reader's token it says more, and what the editor does.
    """
    why = service.not_ready()
    if why is not None:
        raise unavailable(why)
    if not details_allowed(request):
        return Readiness()
    current = service.follower.current
    return Readiness(
        version=current.version, edits=len(current.edits), editor=service.editor.state, editing=service.not_editing()
    )


class EditorStatus(BaseModel):
    state: str = Field(description=f"One of {', '.join(STATES)}.")
    why: str | None = Field(description="The reason for a state in which it does not work.")
    stage: str | None = Field(description="What it does while it prepares.")
    seconds: float = Field(description="How long it has been in this state, or stage.")
    training: list[str] = Field(description="Ids of the edits that it trains.")
    done: int = Field(description="How many of these are done.")
    previews: int = Field(description="Previews that wait.")
    restarts: int = Field(description="How often it ended and was started again.")
    cpu_share: float | None = Field(description="CPU seconds that it gets in a second.")


class Status(BaseModel):
    """What the service does just now."""

    answering: str | None = Field(description="Why requests are not answered; null if they are.")
    editing: str | None = Field(description="Why edits are not trained; null if they are.")
    store: str | None = Field(description="Why the store cannot be read, or a version not be taken over; or null.")
    version: int
    edits: int
    namespaces: int
    editor: EditorStatus


@router.get("/v1/status", responses=DENIED)
async def status(service: ServiceDep, _: Reader) -> Status:
    """What answering and editing do, and why one of them does not."""
    editor, current = service.editor, service.follower.current
    return Status(
        answering=service.not_ready(),
        editing=service.not_editing(),
        store=service.follower.trouble or None,
        version=current.version,
        edits=len(current.edits),
        namespaces=len(current.handles),
        editor=EditorStatus(
            state=editor.state,
            why=editor.why or None,
            stage=editor.stage or None,
            seconds=round(time.monotonic() - editor.since, 1),
            training=[*editor.training],
            done=editor.done,
            previews=len(service.previews),
            restarts=editor.restarts,
            cpu_share=None if editor.cpu_share is None else round(editor.cpu_share, 3),
        ),
    )


@router.get("/v1/token", responses=DENIED)
async def token(holder: NamespaceReader) -> TokenView:
    """Who the request's token belongs to, and what it allows."""
    namespaces = None if holder.namespaces is None else sorted(holder.namespaces)
    return TokenView(name=holder.name, scope=holder.scope, until=holder.until, namespaces=namespaces)


@router.get(
    "/metrics", response_class=Response, dependencies=[Depends(requires(READER, unless_open=True))], responses=DENIED
)
async def metrics(service: ServiceDep) -> Response:
    """In the format of Prometheus; needs a reader's token, unless `open_metrics` is set."""
    metrics, editor = service.metrics, service.editor
    metrics.set_queue(*await run_in_threadpool(service.follower.queue))
    metrics.editor.set(editor.state in (READY, FAILING))
    for state in STATES:
        metrics.editor_state.labels(state).set(state == editor.state)
    metrics.editor_seconds.set(time.monotonic() - editor.since)
    metrics.editor_cpu.set(editor.cpu_share or 0)
    metrics.previews.set(len(service.previews))
    metrics.wrong_answers.set(len(service.wrong_answers))
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
    text, media_type = (CONSOLE / name).read_text(encoding="utf-8"), MEDIA_TYPES[PurePath(name).suffix]
    return Response(text, media_type=f"{media_type}; charset=utf-8", headers=CONSOLE_HEADERS)
