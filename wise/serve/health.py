"""`/health`, `/ready` and `/metrics`: for those who watch over the service. They need no token."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel

from wise.serve.access import Served
from wise.serve.problems import unavailable

router = APIRouter(tags=["operation"])


class Health(BaseModel):
    status: str = "ok"


class Readiness(BaseModel):
    status: str = "ready"
    version: int
    edits: int
    editor: str


@router.get("/health")
async def health(service: Served) -> Health:
    """Whether the process does its work; 503 where only a new one can."""
    if not service.engine.alive:
        raise unavailable("the engine has ended; see the log, and start the service again")
    return Health()


@router.get("/ready")
async def ready(service: Served) -> Readiness:
    """Whether requests should come here; 503 with the reason where not."""
    why = service.not_ready()
    if why is not None:
        raise unavailable(why)
    edition = service.follower.current
    return Readiness(version=edition.version, edits=len(edition.edits), editor=service.editor.state)


@router.get("/metrics", response_class=Response)
async def metrics(service: Served) -> Response:
    """In the format of Prometheus."""
    service.metrics.editor.set(service.editor_works())
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
