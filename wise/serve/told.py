"""Pieces of answers, gathered: their texts, probabilities, and who spoke."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from fastapi import Request

from wise.edits import Edit
from wise.serve.row import Finish, Job, Piece, Spoken, Wish
from wise.serve.sampling import Chances
from wise.serve.schemas import SpokenEdit, TokenRoute, Usage
from wise.serve.service import Service
from wise.serve.wording import CONTEXT


@dataclass
class Gathered:
    """All that came of one row."""

    wish: Wish
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    chances: list[Chances] = field(default_factory=list)
    spoken: list[Spoken] = field(default_factory=list)
    finish: Finish | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.tokens += piece.tokens
        self.chances += piece.chances
        self.spoken += piece.spoken
        self.finish = piece.finish or self.finish


async def pieces(job: Job, rows: int) -> AsyncIterator[Piece]:
    """All pieces of a job, until every row is through. Raises what went wrong. Left early, the job is cancelled."""
    left = rows
    try:
        while left:
            piece = await job.pieces.get()
            if isinstance(piece, Exception):
                raise piece
            left -= piece.finish is not None
            yield piece
    finally:
        job.cancelled = bool(left)


async def gathered(service: Service, request: Request, wishes: Sequence[Wish], seconds: float | None) -> list[Gathered]:
    """The whole answers; given up when the client leaves."""
    job = service.submit(wishes, seconds)
    rows = [Gathered(wish) for wish in wishes]

    async def collect() -> None:
        async for piece in pieces(job, len(rows)):
            rows[piece.row].add(piece)

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, leaving = asyncio.ensure_future(collect()), asyncio.ensure_future(left())
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
        return rows
    finally:
        job.cancelled = job.cancelled or not work.done()
        work.cancel()
        leaving.cancel()


def spoken_edits(service: Service, row: Gathered) -> list[SpokenEdit]:
    """The edits that spoke, in the order in which they first did, as they are in the version that answered."""
    places: dict[str | None, list[int]] = {}
    for one in row.spoken:
        if one.open:
            places.setdefault(one.edit, []).append(one.place)
    known: dict[str, Edit] = {edit.id: edit for edit in row.wish.voice.state.edits} if places else {}
    return [
        SpokenEdit(
            id=edit_id,
            prompt=known[edit_id].prompt if edit_id in known else None,
            target=known[edit_id].target if edit_id in known else None,
            tokens=tokens,
        )
        for edit_id, tokens in places.items()
    ]


def token_routes(service: Service, row: Gathered) -> list[TokenRoute]:
    """Every token of prompt and answer; the last one was never read, so it has no route."""
    by_place = {one.place: one for one in row.spoken}
    ids = [*row.wish.prompt, *row.tokens]
    told = []
    for place in range(len(ids)):
        one = by_place.get(place)
        told.append(
            TokenRoute(
                place=place,
                token=_written(service, ids, place),
                part="prompt" if place < len(row.wish.prompt) else "answer",
                edit=one.edit if one and one.open else None,
                slot=one.slot if one and one.open else None,
                score=_finite(one.score) if one else None,
                threshold=_finite(one.threshold) if one else None,
            )
        )
    return told


def _written(service: Service, ids: Sequence[int], place: int) -> str:
    """A token as it stands in its text, with the space before it where it brings one."""
    before = ids[max(0, place - CONTEXT) : place]
    with_it = str(service.tokenizer.decode([*before, ids[place]]))
    return with_it[len(str(service.tokenizer.decode(list(before)))) :]


def usage_of(rows: Sequence[Gathered], n: int) -> Usage:
    """n: rows that share a prompt."""
    prompt = sum(len(row.wish.prompt) for row in rows[::n])
    new = sum(len(row.tokens) for row in rows)
    return Usage(prompt_tokens=prompt, completion_tokens=new, total_tokens=prompt + new)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
