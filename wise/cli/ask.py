"""`wise ask`: what a model answers before and after its edits, and who spoke at every token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from wise.checks import checked_text
from wise.cli.common import (
    SLOT_STYLES,
    JsonOption,
    ModelOption,
    ThreadsOption,
    finite,
    load_model,
    show_json,
    show_table,
)

if TYPE_CHECKING:
    from wise.answer import Answer


def ask(
    prompts: Annotated[list[str], typer.Argument(help="What to ask; a prompt ends right before the answer.")],
    memory: Annotated[Path, typer.Option("--memory", help="Folder of a saved memory.")],
    model: ModelOption = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Tokens that an answer may have.")
    ] = 32,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask an edited model: the answer before and after, with the route of every token."""
    prompts = [checked_text("prompt", prompt) for prompt in prompts]
    base, tokenizer = load_model(model, threads=threads)
    from wise.model import WiseModel

    wrapped = WiseModel.from_pretrained(base, tokenizer, memory)
    with wrapped.disabled():
        before = wrapped.ask(prompts, max_new_tokens=max_new_tokens)
    after = wrapped.ask(prompts, max_new_tokens=max_new_tokens)
    for base_answer, answer in zip(before, after, strict=True):
        _show(base_answer, answer)
    if as_json:
        answers = [
            {"prompt": a.prompt, "before": b.text, "after": a.text, "tokens": _tokens(a)}
            for b, a in zip(before, after, strict=True)
        ]
        show_json({"memory": str(memory), "answers": answers})


def _tokens(answer: Answer) -> list[dict[str, Any]]:
    routes = zip(answer.tokens, answer.slots, answer.scores, answer.thresholds, strict=True)
    return [
        {
            "token": token,
            "part": "prompt" if place < answer.prompt_tokens else "answer",
            "slot": slot,
            "score": score,
            "threshold": finite(threshold),
        }
        for place, (token, slot, score, threshold) in enumerate(routes)
    ]


def _show(before: Answer, after: Answer) -> None:
    typer.echo(f"prompt: {after.prompt}\nbefore: {before.text}\nafter:  {after.text}")
    rows = []
    for token in _tokens(after):
        slot = token["slot"]
        style = SLOT_STYLES[slot % len(SLOT_STYLES)] if slot is not None else ""
        speaker = f"slot {slot}" if slot is not None else "base"
        cells = (Text(repr(token["token"]), style=style), token["part"], Text(speaker, style=style))
        rows.append((*cells, token["score"], token["threshold"]))
    show_table("", ("token read", "part", "speaks", "score", "threshold"), rows)
