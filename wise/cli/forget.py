"""`wise forget`: takes edits out of a saved memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from wise.cli.common import NOT_VERIFIED, check_memory_folder
from wise.cli.options import EditedModelOptions, JsonOption, with_options
from wise.cli.terminal import echo, show_json


@with_options
def forget(
    memory: Annotated[Path, Argument(help="Folder of a saved memory, which is replaced as a whole.")],
    ids: Annotated[list[str], Option("--id", help="Id of an edit to take out. Repeat for more.")],
    output: Annotated[Path | None, Option(help="Folder to save to instead; the memory stays as it is.")] = None,
    *,
    edited: EditedModelOptions,
    as_json: JsonOption = False,
) -> None:
    """Take edits out of a memory, so that it is bit for bit one without them.

    Where they share weights with others, as in modes merge and retrieve, these others are written anew, for which the
    model is loaded; otherwise none is. The exit code is 3 where an edit did not verify after that.
    """
    from wise.memory.artifact import load_memory, save_memory

    config, state, base = load_memory(memory)
    check_memory_folder("--output", output)
    start, start_cpu = time.perf_counter(), time.process_time()
    live_ids = state.live(ids)
    if state.sharing(live_ids):
        wrapped = edited.load(memory)
        report = wrapped.delete(live_ids)
        wrapped.save_pretrained(output or memory)
        remaining = len(wrapped.edits)
    else:
        from wise.training.report import DeleteReport

        state = state.without(live_ids)
        save_memory(output or memory, config=config, state=state, base=base)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
        report = DeleteReport(deleted=live_ids, rewritten=(), dropped=(), seconds=seconds, cpu_seconds=cpu_seconds)
        remaining = len(state.edits)
    echo(f"{len(report.deleted)} deleted, {remaining} left; {report.seconds:.1f} s; saved to {output or memory}")
    if report.rewritten:
        echo(f"written anew, since they had shared a slot with what was deleted: {', '.join(report.rewritten)}")
    if report.dropped:
        echo(f"no longer answered as edited, and dropped: {', '.join(report.dropped)}")
    if as_json:
        show_json({"edits": remaining, "output": str(output or memory)} | report.to_dict())
    if report.dropped:
        raise typer.Exit(NOT_VERIFIED)
