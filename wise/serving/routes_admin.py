"""Routes for operators: `/health`, `/ready`, `/metrics`, and `/console`, a static page that uses the other routes.

Health and readiness need no token, because the probes that ask have none.
"""

from __future__ import annotations

import time
from importlib.resources import files

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, Field

from wise.serving.auth import Reader, requires_metrics
from wise.serving.editor_client import FAILING, READY, STATES
from wise.serving.http_errors import ERRORS, unavailable
from wise.serving.service import Served

router = APIRouter(tags=["operation"])
console = APIRouter(include_in_schema=False)
CONSOLE_FILES = {
    "/console": ("console.html", "text/html"),
    "/console.css": ("console.css", "text/css"),
    "/console.js": ("console.js", "text/javascript"),
}
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
    status: str = "ready"
    version: int
    edits: int
    editor: str
    editing: str | None = Field(None, description="Why edits are not trained; null if they are.")


@router.get("/health")
async def health(service: Served) -> Health:
    """Whether the process works; 503 if it must be restarted."""
    if not service.engine.alive:
        raise unavailable("the engine has ended; see the log, and start the service again")
    return Health()


@router.get("/ready")
async def ready(service: Served) -> Readiness:
    """Whether requests should come here, for answers; 503 with the reason if not. Beside it, what the editor does."""
    why = service.not_ready()
    if why is not None:
        raise unavailable(why)
    current = service.follower.current
    return Readiness(
        version=current.version,
        edits=len(current.edits),
        editor=service.editor.state,
        editing=service.not_editing(),
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


@router.get("/v1/status", responses={status: ERRORS[status] for status in (401, 403)})
async def status(service: Served, _: Reader) -> Status:
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
            training=list(editor.training),
            done=editor.done,
            previews=len(service.previews),
            restarts=editor.restarts,
            cpu_share=None if editor.cpu_share is None else round(editor.cpu_share, 3),
        ),
    )


@router.get(
    "/metrics",
    response_class=Response,
    dependencies=[Depends(requires_metrics)],
    responses={status: ERRORS[status] for status in (401, 403)},
)
async def metrics(service: Served) -> Response:
    """In the format of Prometheus; needs a reader's token, unless `open_metrics` is set."""
    metrics, editor = service.metrics, service.editor
    metrics.editor.set(editor.state in (READY, FAILING))
    for state in STATES:
        metrics.editor_state.labels(state).set(state == editor.state)
    metrics.editor_seconds.set(time.monotonic() - editor.since)
    metrics.editor_cpu.set(editor.cpu_share or 0)
    metrics.previews.set(len(service.previews))
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@console.get("/")
async def root() -> RedirectResponse:
    return RedirectResponse("/console")


@console.get("/console")
@console.get("/console.css")
@console.get("/console.js")
async def console_file(request: Request) -> Response:
    name, media_type = CONSOLE_FILES[request.scope["route"].path]
    text = (files("wise.serving") / "console" / name).read_text(encoding="utf-8")
    return Response(text, media_type=f"{media_type}; charset=utf-8", headers=CONSOLE_HEADERS)
