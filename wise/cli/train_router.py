"""`wise train-router`: teaches the sentence encoder of mode 'hybrid' to tell apart what questions ask."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from wise.cli.common import check_output, file_facts, progress_bars, show_table
from wise.cli.options import DeviceOption, EncoderOption, JsonOption, ProgressOption, SeedOption, ThreadsOption
from wise.cli.terminal import echo, show_json
from wise.errors import ConfigError
from wise.loading import check_device, prepare
from wise.progress import Progress
from wise.training.router.builtin_questions import SUBJECTS, builtin_questions, read_questions, wordings

if TYPE_CHECKING:
    from wise.training.router.builtin_questions import QuestionSet
    from wise.training.router.calibration import Figures


def train_router(
    output: Annotated[Path, Option(help="File for what is taught, safetensors.")],
    questions: Annotated[Path | None, Option(help="TOML file of questions. Left out: those that ship.")] = None,
    with_shipped: Annotated[bool, Option("--with-shipped", help="Teach on the shipped questions as well.")] = False,
    encoder: EncoderOption = None,
    steps: Annotated[int, Option(min=1, help="Steps of optimisation.")] = 225,
    seed: SeedOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    progress: ProgressOption = False,
) -> None:
    """Teach the reader that tells apart what questions ask, on questions of your own field.

    No base is needed, and what is taught serves any of them: `wise edit --relations FILE`. One relation in six of each
    kind, and at least two, is not taught; on these the thresholds are set and the figures measured. Memories are read
    with the file that they were made with. On one core 225 steps take some ten minutes; what ships was taught in 1,000,
    on a GPU.
    """
    check_output("--output", output)
    if with_shipped and questions is None:
        raise ConfigError("--with-shipped adds to questions of your own: give them with --questions FILE")
    shipped = builtin_questions() if with_shipped else None
    taught = builtin_questions() if questions is None else read_questions(questions, added_to=shipped)
    prepare(threads)
    check_device(device)
    from wise.training.router.encoder_training import train_reader

    source = None if questions is None else file_facts(questions)
    with progress_bars(progress) as show:
        figures = train_reader(
            output, taught, encoder=encoder, steps=steps, seed=seed or 0, device=device, progress=without_loss(show)
        )
    _show(figures, taught, output)
    if as_json:
        show_json(asdict(figures) | _sizes(taught) | {"questions": source, "output": str(output)})


def without_loss(show: Progress) -> Progress:
    """One bar for what is done, without the loss in its name."""
    return lambda what, done, total: show(what.partition(",")[0], done, total)


def _sizes(taught: QuestionSet) -> dict[str, int]:
    relations = [relation for kind in taught[SUBJECTS] for relation in taught[kind].values()]
    count = sum(map(len, map(wordings, relations)))
    return {"kinds": len(taught[SUBJECTS]), "relations": len(relations), "wordings": count}


def _show(figures: Figures, taught: QuestionSet, output: Path) -> None:
    rows = [
        ("question, subject named", figures.threshold, figures.recall),
        ("unfinished sentence, subject named", figures.sentence_threshold, figures.sentence_recall),
        ("edit without a subject", figures.nameless_threshold, None),
        ("no subject named", figures.unnamed_threshold, figures.unnamed_recall),
    ]
    show_table("Held-out relations", ("", "threshold", "rewordings that reach it"), rows)
    sizes = "; ".join(f"{name}: {count}" for name, count in _sizes(taught).items())
    echo(f"taught on {sizes}; written to {output}")
