"""`/v1/ask`: what the base says, what is said with the edits, and who spoke at every token."""

from __future__ import annotations

from fastapi import APIRouter, Request

from wise.serve.access import Reader, Served
from wise.serve.completions import room_for
from wise.serve.problems import invalid
from wise.serve.row import Wish
from wise.serve.schemas import AskAnswer, Asked, AskRequest
from wise.serve.told import gathered, spoken_edits, token_routes

router = APIRouter(prefix="/v1", tags=["answers"])


@router.post("/ask")
async def ask(body: AskRequest, request: Request, service: Served, _: Reader) -> AskAnswer:
    """Greedy answers to the model's own stop, without and with the edits of one version."""
    if len(body.prompts) > service.settings.prompt_limit:
        limit = service.settings.prompt_limit
        raise invalid(f"prompts: {len(body.prompts)} were given and {limit} are taken at once", "prompts")
    voice = service.voice(body.model)
    base = service.follower.current.base
    wishes = []
    for text in body.prompts:
        prompt = tuple(service.encoder.prompt(text))
        room = room_for(service, prompt, body.max_tokens, "prompts")
        wishes += [Wish(prompt=prompt, voice=own, max_new_tokens=room, trace=True) for own in (base, voice)]
    rows = await gathered(service, request, wishes, None)
    answers = [
        Asked(
            prompt=text,
            before=service.encoder.answer(before.tokens),
            after=service.encoder.answer(after.tokens),
            edits=spoken_edits(service, after),
            routes=token_routes(service, after),
        )
        for text, before, after in zip(body.prompts, rows[::2], rows[1::2], strict=True)
    ]
    return AskAnswer(version=voice.version, namespace=voice.namespace or "", answers=answers)
