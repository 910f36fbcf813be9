"""`wise check`, `wise gc`, `wise export`, `wise import`: a store looked after, and its knowledge carried elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from wise.cli.common import NOT_WHOLE, JsonOption, show_json, show_table
from wise.cli.history import AuthorOption, ReasonOption, StoreArgument, opened, show_version


def check(store: StoreArgument, as_json: JsonOption = False) -> None:
    """Verify all of a store: files, references, versions, and the journal. Changes nothing.

    The exit code is 4 where something is wrong.
    """
    with opened(store, writer=False) as found:
        result = found.check()
    figures = asdict(result)
    problems = figures.pop("problems")
    show_table("Store", ("", ""), figures.items())
    for problem in problems:
        typer.echo(problem)
    typer.echo("all is whole" if not problems else f"{len(problems)} problems")
    if as_json:
        show_json(figures | {"problems": problems})
    if problems:
        raise typer.Exit(NOT_WHOLE)


def gc(
    store: StoreArgument,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Versions to keep, the newest.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Collect old versions and the files that only they need; versions that somebody reads stay."""
    with opened(store, writer=True) as found:
        result = found.gc(keep=keep)
    typer.echo(
        f"collected {len(result.versions)} versions, removed {result.blobs} files of {result.bytes} bytes; "
        f"{len(result.pinned)} versions are being read and stay"
    )
    if as_json:
        show_json(asdict(result))


def export(
    store: StoreArgument,
    folder: Annotated[Path, typer.Argument(help="Folder to write: a memory, with what the journal says of its edits.")],
    version: Annotated[int | None, typer.Option("--version", min=1, help="Left out: the current one.")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", help="Edits of this namespace only.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version of a store as a knowledge pack, which `wise import` and `wise ask --memory` read."""
    with opened(store, writer=False) as found:
        count = found.export_pack(folder, version=version, namespace=namespace)
    typer.echo(f"{count} edits, exported to {folder}")
    if as_json:
        show_json({"edits": count, "output": str(folder)})


def import_(
    store: StoreArgument,
    pack: Annotated[Path, typer.Argument(help="Folder of a knowledge pack, or of a memory that 'wise edit' saved.")],
    author: AuthorOption = None,
    reason: ReasonOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take the edits of a knowledge pack into a store, which is made where there is none, as one new version."""
    from wise.memory.store.pack import read_pack
    from wise.memory.store.store import Store

    read_pack(pack)  # what is refused makes no store
    with Store.open(store) as found:
        made = found.import_pack(pack, author=author, reason=reason)
    show_version(made, as_json)
