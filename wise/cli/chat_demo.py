"""`wise chat-demo`: facts corrected in a chat model, before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.text import Text
from typer import Option

from wise.cli.common import check_chats, check_picture, progress_bars, show_table
from wise.cli.options import JsonOption, PlacementOptions, ProgressOption, ThreadsOption, with_options
from wise.cli.terminal import echo, show_json
from wise.loading import load_model, prepare

if TYPE_CHECKING:
    from wise.demo.chat import ChatDemo


@with_options
def chat_demo(
    model: Annotated[
        str | None, Option(help="Folder or hub id of a chat model. Left out: SmolLM2-135M-Instruct, fetched.")
    ] = None,
    picture: Annotated[Path | None, Option(help="File to draw scores and thresholds to, such as routing.png.")] = None,
    threads: ThreadsOption = None,
    *,
    placement: PlacementOptions,
    as_json: JsonOption = False,
    progress: ProgressOption = False,
) -> None:
    """Correct a few facts in a chat model, ask in other words and in a later turn, and take all of it back."""
    check_picture(picture)
    prepare(threads)
    from wise.demo.chat import run_chat_demo
    from wise.demo.fetch import chat_model_folder
    from wise.model import wrap

    base, tokenizer = load_model(model or chat_model_folder(), threads=threads, placement=placement)
    check_chats(tokenizer, "give a chat model with --model, or use `wise demo`")
    with progress_bars(progress) as show:
        result = run_chat_demo(wrap(base, tokenizer), progress=show)
    _show(result)
    if picture is not None:
        from wise.demo.picture import draw_decisions

        drawn = [(a.line.question, a.score, a.threshold, a.line.target is not None) for a in result.answers]
        draw_decisions(drawn, picture)
        echo(f"scores and thresholds drawn to {picture}")
    if as_json:
        questions = [
            {"kind": a.line.kind, "question": a.line.question, "before": a.before, "after": a.after, "right": a.right}
            for a in result.answers
        ]
        counts = {"verified": result.report.count("verified"), "right": sum(a.right for a in result.answers)}
        show_json(counts | {"asked": questions, "undone": result.undone, "seconds": result.seconds})


def _show(result: ChatDemo) -> None:
    rows = [
        (a.line.kind, a.line.question, _short(a.before), Text(_short(a.after), style="green" if a.right else "red"))
        for a in result.answers
    ]
    show_table("before and after", ("", "question", "before", "after"), rows)
    for outcome in result.report.outcomes:
        holding = sum(outcome.holds.values())
        echo(f"{outcome.status}: {holding} of {len(outcome.holds)} wordings hold, answer {outcome.answer!r}")
    right = sum(a.right for a in result.answers)
    echo(
        f"{right} of {len(result.answers)} as they should be; taken back, the model says what it said before: "
        f"{'yes' if result.undone else 'NO'}\n{result.seconds:.0f} seconds in all"
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 70 else f"{line[:67]}..."
