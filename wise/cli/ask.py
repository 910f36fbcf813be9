"""`wise ask`: what a model answers before and after its edits, and who spoke at every token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.text import Text
from typer import Argument, Option

from wise.cli.common import show_table
from wise.cli.options import EditedModelOptions, JsonOption, with_options
from wise.cli.terminal import echo, show_json
from wise.edits import check_one_namespace
from wise.errors import checked_text
from wise.safe_text import finite

if TYPE_CHECKING:
    from wise.edits import Edit
    from wise.explain import Answer, Claim, TokenRoute

SLOT_STYLES = ("green", "cyan", "magenta", "yellow", "blue", "red")


@with_options
def ask(
    prompts: Annotated[list[str], Argument(help="What to ask; a text to be completed ends right before the answer.")],
    memory: Annotated[Path, Option(help="Folder of a saved memory.")],
    explain: Annotated[bool, Option("--explain", help="Say which edit spoke at each token, and the nearest.")] = False,
    chat: Annotated[
        bool | None,
        Option(
            "--chat/--plain",
            help="Ask as a turn of a chat, or as plain text to be completed. Left out: as a chat in hybrid where the "
            "model has a chat template, else as plain text.",
        ),
    ] = None,
    max_new_tokens: Annotated[int, Option(min=1, help="Tokens that an answer may have.")] = 32,
    *,
    edited: EditedModelOptions,
    as_json: JsonOption = False,
) -> None:
    """Ask an edited model: the answer before and after, with the route of every token that was read."""
    prompts = [checked_text("prompt", prompt) for prompt in prompts]
    wrapped = edited.load(memory)
    check_one_namespace(wrapped.edits)
    with wrapped.disabled():
        before = wrapped.ask(prompts, chat=chat, max_new_tokens=max_new_tokens)
    after = wrapped.ask(prompts, chat=chat, max_new_tokens=max_new_tokens)
    edits = {edit.id: edit for edit in wrapped.edits}
    for base_answer, answer in zip(before, after, strict=True):
        echo(f"prompt: {answer.prompt}\nbefore: {base_answer.text}\nafter:  {answer.text}")
        if explain:
            _explain(answer, edits)
        else:
            _show(answer)
    if as_json:
        answers = [_answer(b, a, explain) for b, a in zip(before, after, strict=True)]
        show_json({"memory": str(memory), "answers": answers})


def _answer(before: Answer, after: Answer, explain: bool) -> dict[str, Any]:
    tokens, routes = [], after.routes
    for place, route in enumerate(routes.tokens):
        token: dict[str, Any] = {"token": route.token, "part": _part(after, place), "slot": route.slot}
        token |= {"score": route.score, "threshold": finite(route.threshold)}
        tokens.append(token | ({"fired": _claim(route.fired), "missed": _claim(route.missed)} if explain else {}))
    answer = {"prompt": after.prompt, "before": before.text, "after": after.text, "tokens": tokens}
    explained = {"fired": routes.fired, "missed": _claim(routes.missed), "missed_at": routes.missed_at}
    return answer | (explained if explain else {})


def _claim(claim: Claim | None) -> dict[str, Any] | None:
    return None if claim is None else {**asdict(claim), "missed_by": claim.missed_by}


def _part(answer: Answer, place: int) -> str:
    return "prompt" if place < answer.prompt_tokens else "answer"


def _speaker(route: TokenRoute) -> tuple[Text, Text]:
    style = SLOT_STYLES[route.slot % len(SLOT_STYLES)] if route.slot is not None else ""
    speaker = f"slot {route.slot}" if route.slot is not None else "base"
    return Text(repr(route.token), style=style), Text(speaker, style=style)


def _show(answer: Answer) -> None:
    rows = []
    for place, route in enumerate(answer.routes.tokens):
        token, speaker = _speaker(route)
        rows.append((token, _part(answer, place), speaker, route.score, route.threshold))
    show_table("", ("token read", "part", "speaks", "score", "threshold"), rows)


def _explain(answer: Answer, edits: Mapping[str, Edit]) -> None:
    rows = []
    for route in answer.routes.tokens:
        token, speaker = _speaker(route)
        fired, missed = route.fired, route.missed
        spoke = (fired.edit, fired.evidence) if fired is not None else (None, None)
        near = (missed.edit, missed.evidence, missed.missed_by) if missed is not None else (None, None, None)
        rows.append((token, speaker, route.score, route.threshold, *spoke, *near))
    columns = ("edit", "evidence", "nearest that missed", "evidence", "missed by")
    show_table("", ("token read", "speaks", "score", "threshold", *columns), rows)
    named = [*answer.routes.fired, *(r.missed.edit for r in answer.routes.tokens if r.missed and r.missed.edit)]
    for edit_id in dict.fromkeys(named):
        echo(f"{edit_id}: {edits[edit_id].prompt} -> {edits[edit_id].target}")
    claim, at = answer.routes.missed, answer.routes.missed_at
    if claim is None or at is None:
        echo("no other edit came near\n")
        return
    wanting = f"missed by {claim.missed_by:.3f}" if claim.missed_by else "another was nearer"
    where = f"{claim.edit} at {answer.tokens[at]!r}"
    echo(f"nearest that spoke nowhere: {where}, evidence {claim.evidence:.3f}, {wanting}\n")
