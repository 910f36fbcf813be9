"""Routes for operators: `/health`, `/ready`, `/metrics`, and `/console`, a static page that uses the other routes.

Health and readiness need no token, because the probes that ask have none.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel

from wise.serving.auth import requires_metrics
from wise.serving.editor_client import FAILING, READY
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


@router.get("/health")
async def health(service: Served) -> Health:
    """Whether the process works; 503 if it must be restarted."""
    if not service.engine.alive:
        raise unavailable("the engine has ended; see the log, and start the service again")
    return Health()


@router.get("/ready")
async def ready(service: Served) -> Readiness:
    """Whether requests should come here; 503 with the reason if not."""
    why = service.not_ready()
    if why is not None:
        raise unavailable(why)
    current = service.follower.current
    return Readiness(version=current.version, edits=len(current.edits), editor=service.editor.state)


@router.get(
    "/metrics",
    response_class=Response,
    dependencies=[Depends(requires_metrics)],
    responses={status: ERRORS[status] for status in (401, 403)},
)
async def metrics(service: Served) -> Response:
    """In the format of Prometheus; needs a reader's token, unless `open_metrics` is set."""
    service.metrics.editor.set(service.editor.state in (READY, FAILING))
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
