"""The application: routes, wired to the service that they are given."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool

import wise
from wise.serve import asking, completions, console, edits, events, health, problems, versions
from wise.serve.passage import Passage
from wise.serve.problems import ERRORS
from wise.serve.service import Service


def build_app(service: Service) -> FastAPI:
    """The service as an ASGI application, which starts it and ends it."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await run_in_threadpool(service.close)

    app = FastAPI(
        title="wise",
        version=wise.__version__,
        description="Completions from a model whose facts are edited while it serves.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    problems.install(app)
    for part in (completions, asking, edits, versions, events):
        app.include_router(part.router, responses=ERRORS)
    app.include_router(health.router, responses={503: ERRORS[503]})
    app.include_router(console.router)
    app.add_middleware(Passage, metrics=service.metrics, body_limit=service.settings.body_limit)
    _without_422(app)
    return app


def _without_422(app: FastAPI) -> None:
    """FastAPI's schema says that bad input is answered with its own 422; here it is a 400, in the one shape."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        schema = made()
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema.get("components", {}).get("schemas", {}).pop(name, None)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
