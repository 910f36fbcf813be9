"""`/console`: one static page that works the service's own routes. It loads nothing from elsewhere."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import RedirectResponse, Response

router = APIRouter(include_in_schema=False)
PARTS = {
    "console.html": "text/html; charset=utf-8",
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def _part(name: str) -> Response:
    text = (files("wise.serve") / "static" / name).read_text(encoding="utf-8")
    return Response(text, media_type=PARTS[name], headers=HEADERS)


@router.get("/")
async def root() -> RedirectResponse:
    return RedirectResponse("/console")


@router.get("/console")
async def page() -> Response:
    return _part("console.html")


@router.get("/console.css")
async def style() -> Response:
    return _part("console.css")


@router.get("/console.js")
async def script() -> Response:
    return _part("console.js")
