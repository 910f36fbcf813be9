"""`/v1/ask`: what the base says, what is said with the edits, and who spoke at every token."""

from __future__ import annotations

from fastapi import APIRouter, Request

from wise.errors import ConfigError, EditError
from wise.serve.access import Reader, Served
from wise.serve.completions import room_for
from wise.serve.problems import invalid
from wise.serve.row import Wish
from wise.serve.schemas import AskAnswer, Asked, AskRequest
from wise.serve.service import Service
from wise.serve.told import gathered, spoken_edits, token_routes
from wise.training.encoding import Question

router = APIRouter(prefix="/v1", tags=["answers"])


@router.post("/ask")
async def ask(body: AskRequest, request: Request, service: Served, _: Reader) -> AskAnswer:
    """Greedy answers to the model's own stop, without and with the edits of one version."""
    if len(body.prompts) > service.settings.prompt_limit:
        limit = service.settings.prompt_limit
        raise invalid(f"prompts: {len(body.prompts)} were given and {limit} are taken at once", "prompts")
    voice = service.voice(body.model)
    base = service.follower.current.base
    questions = _questions(service, body)
    wishes = []
    for question in questions:
        room = room_for(service, question.ids, body.max_tokens, "prompts")
        wishes += [Wish(prompt=question.ids, voice=own, max_new_tokens=room, trace=True) for own in (base, voice)]
    rows = await gathered(service, request, wishes, None)
    answers = [
        Asked(
            prompt=question.text,
            before=service.encoder.answer(before.tokens, chat=question.chat),
            after=service.encoder.answer(after.tokens, chat=question.chat),
            edits=spoken_edits(service, after),
            routes=token_routes(service, after),
        )
        for question, before, after in zip(questions, rows[::2], rows[1::2], strict=True)
    ]
    return AskAnswer(version=voice.version, namespace=voice.namespace or "", answers=answers)


def _questions(service: Service, body: AskRequest) -> list[Question]:
    """Raises a Problem that names the place of a prompt that cannot be asked so."""
    found = []
    for place, prompt in enumerate(body.prompts):
        given = prompt if isinstance(prompt, str) else [turn.model_dump() for turn in prompt]
        try:
            found.append(service.encoder.question(given, chat=body.chat))
        except (ConfigError, EditError) as error:
            raise invalid(f"prompts.{place}: {error}"[:500], f"prompts.{place}") from error
    return found
