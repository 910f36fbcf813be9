"""Routes of files of edits: `/v1/files/edits`, to read one without submitting it, and to export the live edits."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Body, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from wise.errors import EditError
from wise.formats import FORMATS
from wise.formats.columns import parsed_columns
from wise.formats.edit_file import read_edits
from wise.serving import schemas
from wise.serving.auth import AuthorizedRoute, NamespaceEditor, NamespaceReader, sees
from wise.serving.http_errors import bad_request
from wise.serving.service import ServiceDep

router = APIRouter(prefix="/v1/files", tags=["edits"], route_class=AuthorizedRoute)
ENDINGS = (".jsonl", ".json", ".csv", ".tsv")
"""Files that are read here. Packed and binary ones are not: what they hold has no bound."""
FILE_EDITS = 10_000
"""Edits of one file."""
LINES = {"description": "A JSON object a line, as `wise edit --edits` reads them."}


@router.post("/edits")
async def read(
    content: Annotated[bytes, Body(media_type="application/octet-stream", description="The bytes of the file.")],
    _: NamespaceEditor,
    name: Annotated[schemas.Text, Query(max_length=200, description=f"Its name; ends in {', '.join(ENDINGS)}.")],
    format: Annotated[schemas.Text, Query(max_length=40, description="As `wise edit --format`.")] = FORMATS[0],
    columns: Annotated[schemas.Text | None, Query(max_length=2000, description="As `wise edit --columns`.")] = None,
) -> schemas.FileAnswer:
    """The edits of a file, as `wise edit --edits` reads them. Nothing is submitted."""
    ending = Path(name.lower()).suffix
    if ending not in ENDINGS:
        raise bad_request(f"name: {name!r:.80} ends in none of {', '.join(ENDINGS)}; give such a file", "name")
    return await run_in_threadpool(_read_upload, content, ending, format, columns)


def _read_upload(content: bytes, ending: str, format: str, columns: str | None) -> schemas.FileAnswer:
    """Raises EditError. Whoever sent the file gets the warnings about it, and the log does not."""
    warnings: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"edits{ending}"
        path.write_bytes(content)
        try:
            edits = read_edits(
                path, format=format, columns=parsed_columns(columns), limit=FILE_EDITS + 1, warn=warnings.append
            )
        except EditError as error:
            where, _, why = str(error).partition(f"{path}:")
            place, _, why = why.partition(" ")
            raise EditError(where or (f"line {place} {why}" if place else why)) from None
    if len(edits) > FILE_EDITS:
        raise EditError(f"more than {FILE_EDITS:,} edits; split the file")
    return schemas.FileAnswer(
        edits=[schemas.EditIn.of(edit) for edit in edits],
        warnings=[warning.removeprefix(f"{path}: ") for warning in warnings],
    )


@router.get("/edits", response_class=StreamingResponse, responses={200: {"content": {"application/jsonl": LINES}}})
async def export(
    service: ServiceDep,
    _: NamespaceReader,
    namespace: Annotated[schemas.Namespace | None, Query(max_length=200, description="Default: all.")] = None,
) -> StreamingResponse:
    """The live edits of the version that is served, as a file of JSON lines."""
    current = service.follower.current
    edits = [e for e in current.edits.values() if namespace in (None, e.namespace) and sees(e.namespace)]

    lines = (json.dumps(edit.to_dict()) + "\n" for edit in edits)
    headers = {"Content-Disposition": f'attachment; filename="edits-version-{current.version}.jsonl"'}
    return StreamingResponse(lines, media_type="application/jsonl", headers=headers)
