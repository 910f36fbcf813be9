"""`/health`, `/ready` and `/metrics`: for those who watch over the service.

The first two need no token, as what asks them has none; figures tell how much is asked and edited, and are for readers.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from pydantic import BaseModel

from wise.serve.access import Served, watching
from wise.serve.problems import ERRORS, unavailable

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


@router.get(
    "/metrics",
    response_class=Response,
    dependencies=[Depends(watching)],
    responses={status: ERRORS[status] for status in (401, 403)},
)
async def metrics(service: Served) -> Response:
    """In the format of Prometheus; for a reader's token, unless `open_metrics` is set."""
    service.metrics.editor.set(service.editor_works())
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
