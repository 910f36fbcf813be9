"""`wise eval-chat`: measures edits by what a chat model answers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from wise.cli import options
from wise.cli.common import check_chats, check_memory_folder, check_output, progress_bars, show_table
from wise.cli.terminal import echo, show_json
from wise.errors import ConfigError
from wise.progress import Progress

if TYPE_CHECKING:
    from wise.edits import Edit
    from wise.lab.eval.chat.facts import Fact
    from wise.lab.eval.prompting import EditedModel
    from wise.training.report import EditReport

FORMS = ("chat", "completion")


@options.with_options
def eval_chat(
    *,
    model: options.ModelOptions,
    facts: Annotated[Path | None, Option(exists=True, help="File of facts. Left out: those that ship.")] = None,
    half: Annotated[str | None, Option(help="Of the shipped facts: judge or fit. Left out: judge.")] = None,
    kinds: Annotated[
        str | None, Option(help="Shipped facts of known,private,nameless,several. Left out: the first two.")
    ] = None,
    data: Annotated[Path | None, Option(help="File or folder of edits, instead of the shipped facts.")] = None,
    read: options.FormatOptions,
    known: Annotated[bool, Option("--known", help="Of --data only records whose right answer the base says.")] = False,
    skip: Annotated[int, Option(min=0, help="Records of --data to leave out at its start.")] = 0,
    limit: Annotated[int | None, Option(min=1, help="Edits to make.")] = None,
    measure: Annotated[int | None, Option(min=1, help="Edits to ask for; all are made.")] = None,
    distractors: Annotated[
        list[int] | None,
        Option(
            min=1,
            help="Measure again with so many further records of --data in the router. They are not written, and answer "
            "with another edit's answer. Repeat for more.",
        ),
    ] = None,
    editor: Annotated[
        str, Option(help="How the edits are made: wise-hybrid, icl, or another editor of `wise eval`.")
    ] = "wise-hybrid",
    set_: options.SetOption = None,
    form: Annotated[str, Option(help="chat, or completion: prompts as plain texts.")] = "chat",
    oracle: Annotated[bool, Option("--oracle/--no-oracle", help="Also with the right edit held open.")] = True,
    encoder: options.EncoderOption = None,
    relations: options.RelationsOption = None,
    output: Annotated[Path | None, Option(help="File for all figures, JSON.")] = None,
    save: Annotated[Path | None, Option(help="Folder to keep the edits in, before they are asked for.")] = None,
    seed: options.SeedOption = None,
    as_json: options.JsonOption = False,
    progress: options.ProgressOption = False,
) -> None:
    """Make edits in a chat model, and ask for them as users do.

    Other editors than wise-hybrid and icl, which know no chats, are given the templated question as their prompt.

    An answer is right where it contains the target and not the old answer; where an edit must not speak, where it is
    the base's very text.
    """
    from wise.architectures import locate
    from wise.config import WiseConfig
    from wise.lab.eval.candidates import find_editor, open_editor
    from wise.lab.eval.chat.measure import apply_edits, base_says, measure_chat
    from wise.lab.eval.results_file import write_json
    from wise.memory.fingerprint import fingerprint
    from wise.model import WiseModel

    shipped, hybrid = data is None and facts is None, editor == "wise-hybrid"
    refused = {
        f"--form {form}: expected one of {', '.join(FORMS)}": form not in FORMS,
        "--columns names the columns of --data or --facts: give one of them": read.columns is not None and shipped,
        "--distractors takes further records of --data, for the editor wise-hybrid: give --data FILE": (
            distractors and (data is None or not hybrid)
        ),
        "--facts and --data both say what is edited: leave one out": facts is not None and data is not None,
        "--half and --kinds choose among the shipped facts: leave them out, or --facts and --data": (
            (half or kinds) and not shipped
        ),
        "--known and --skip choose among the records of --data: give --data FILE, or leave them out": (
            (known or skip) and data is None
        ),
        f"--encoder and --relations are of wise-hybrid, and the editor is {editor}; leave them out": (
            (encoder or relations) and not hybrid
        ),
        f"--editor {editor} makes no edits; name another": not find_editor(editor).edits,
        f"--save keeps a side memory, and the editor {editor} has none; leave it out": (
            save is not None and find_editor(editor).kind != "memory"
        ),
    }
    for problem in [problem for problem, is_given in refused.items() if is_given]:
        raise ConfigError(problem)
    check_output("--output", output)
    check_memory_folder("--save", save)
    half, kinds, chat = half or "judge", kinds or "known,private", form == "chat"
    candidates = _facts(facts, half, kinds, data, read, known, skip, limit, seed or 0)
    values = options.settings(seed=seed, encoder=encoder, relations=options.absolute(relations))
    chosen_settings = options.parsed_settings(set_) | values
    base, tokenizer = model.load()
    if chat:
        check_chats(tokenizer, "give a chat model with --model, or --form completion")
    with progress_bars(progress) as show:
        wrapped = open_editor(editor, base, tokenizer, chosen_settings, chat=chat, progress=show)
        start = time.process_time()
        wrapped.prepare()
        prepared = time.process_time() - start
        chosen = base_says(wrapped, candidates, chat=chat, limit=limit) if known else candidates
        if not chosen:
            raise ConfigError(
                f"--known: the base says the right answer of none of {len(candidates)} records; leave it out"
            )
        further = _further(data, read, skip, chosen, distractors)
        report = apply_edits(wrapped, editor, [fact.edit for fact in chosen], chat=chat, progress=show)
        if save is not None and isinstance(wrapped, WiseModel):
            wrapped.save_pretrained(save)
        about: dict[str, Any] = _editing_figures(report, chosen) | {
            "editor": editor,
            "edits": len(chosen),
            "form": form,
            "precision": fingerprint(base, locate(base, WiseConfig())).precision,
            "source": data.name if data else facts.name if facts else f"everyday, {half}: {kinds}",
            "preparation_cpu_seconds": prepared,
        }
        whole: dict[str, Any] = {}
        for count in (0, *(distractors or ())):
            with _with_distractors(wrapped, further, count, show):
                measured_facts = chosen[:measure]
                figures = measure_chat(wrapped, measured_facts, chat=chat, oracle=oracle and not count, progress=show)
            measured, title = figures.to_dict(), f"{len(chosen)} edits by {editor}, {form}"
            if count:
                whole["distractors"][str(count)] = measured
            else:
                whole = measured | about | {"distractors": {}}
            _show(f"{title}, {count} distractors" if count else title, measured)
            if output is not None:  # each time, so that an interrupt loses nothing that was measured
                write_json(output, whole)
    echo(
        f"verified {report.count('verified')} of {len(chosen)}, in part {report.count('partial')}; "
        f"preparation {prepared:.0f} CPU-s, {report.cpu_seconds / len(chosen):.2f} CPU-s an edit"
    )
    if as_json:
        show_json(whole)


def _editing_figures(report: EditReport, facts: Sequence[Fact]) -> dict[str, Any]:
    """What became of the edits of `facts`, and what they cost."""
    return {
        "verified": report.count("verified"),
        "partial": report.count("partial"),
        "cpu_seconds_per_edit": report.cpu_seconds / len(facts),
        "not_verified": [
            {"prompt": fact.edit.prompt, "status": outcome.status, "holds": dict(outcome.holds)}
            for fact, outcome in zip(facts, report.outcomes, strict=True)
            if outcome.status != "verified"
        ],
    }


def _show(title: str, figures: Mapping[str, Any]) -> None:
    rows = [
        (name, f"{share['share']:.3f}", str(share["asked"]), "{:.3f} to {:.3f}".format(*share["interval"]))
        for name, share in figures["measures"].items()
    ]
    show_table(title, ("measure", "right", "asked", "95 %"), rows)


def _with_distractors(
    model: EditedModel, records: Sequence[Edit], count: int, show: Progress
) -> AbstractContextManager[Any]:
    """So many distractors are live for the length of a `with` block."""
    from wise.lab.eval.chat.distractors import with_distractors
    from wise.model import WiseModel

    if not count or not isinstance(model, WiseModel) or model.inputs is None:
        return nullcontext()
    live = {edit.prompt for edit in model.edits}
    added = [edit for edit in records if edit.prompt not in live][:count]
    state = with_distractors(model.state, added, encoder=model.encoder, inputs=model.inputs, progress=show)
    return model.serving(state)


def _further(
    data: Path | None, read: options.FormatOptions, skip: int, chosen: Sequence[Fact], distractors: list[int] | None
) -> list[Edit]:
    """The records that distractors are taken of. Raises ConfigError where too few of them are not edited."""
    if data is None or not distractors:
        return []
    edits = [record.edit for record in read.read(data)[skip:]]
    prompts = {fact.edit.prompt for fact in chosen}
    remaining = sum(edit.prompt not in prompts for edit in edits)
    if remaining < max(distractors):
        raise ConfigError(f"--distractors {max(distractors)}: the file has {remaining} further records")
    return edits


def _facts(
    facts: Path | None, half: str, kinds: str, data: Path | None, read: options.FormatOptions, known: bool, skip: int,
    limit: int | None, seed: int,
) -> list[Fact]:
    """What is edited, or with `known` what it is chosen from. Raises ConfigError where that is nothing."""
    from wise.lab.eval.chat.facts import everyday_facts, facts_of, read_facts

    if data is not None:
        many = None if limit is None else skip + limit * (16 if known else 1)
        candidates = facts_of(read.read(data, many)[skip:], seed=seed)
        candidates = [fact for fact in candidates if fact.answer] if known else candidates[:limit]
    elif facts is not None:
        candidates = read_facts(facts, read.named_columns())[:limit]
    else:
        candidates = everyday_facts(half, [kind.strip() for kind in kinds.split(",") if kind.strip()])[:limit]
    if not candidates:
        raise ConfigError("no fact is left to edit: give another file, or leave out --skip and --known")
    return candidates
