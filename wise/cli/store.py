"""`wise store ...`: what happened in a store, undoing it, looking after it, and carrying its edits elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from unicodedata import normalize

import typer
from typer import Argument, Option

from wise.cli.common import NOT_VERIFIED, NOT_WHOLE, check_output, progress_bars, show_table
from wise.cli.options import EditedModelOptions, JsonOption, ProgressOption, with_options
from wise.cli.terminal import echo, show_json
from wise.errors import ConfigError

if TYPE_CHECKING:
    from wise.memory.state import MemoryState
    from wise.memory.store.edit_request import Event, Ticket, Version
    from wise.memory.store.store import Store

LARGEST = 2**63 - 1
"""The largest number that a journal can be asked for."""
StoreArgument = Annotated[str, Argument(metavar="STORE", help="Folder of a store, or its postgresql:// URL.")]
NamespaceOption = Annotated[
    str | None, Option(help="Edits of this namespace only.", callback=lambda name: name and normalize("NFC", name))
]
AuthorOption = Annotated[str | None, Option("--author", help="Who does it, for the journal.")]
ReasonOption = Annotated[str | None, Option("--reason", help="Why, for the journal.")]

app = typer.Typer(
    name="store",
    no_args_is_help=True,
    help="The journal of a store; undo, prove, back up, erase, clean up, export, import.",
)


@contextmanager
def opened(place: str, *, writer: bool) -> Iterator[Store]:
    """A store that exists: where a name was mistyped, no new one is made."""
    from wise.memory.store.store import Store

    with Store.open(place, writer=writer, create=False) as store:
        yield store


@app.command()
def log(
    store: StoreArgument,
    since: Annotated[int, Option(min=0, max=LARGEST, help="Show what happened after this event.")] = 0,
    limit: Annotated[
        int | None, Option(min=1, max=LARGEST, help="Show so many at the most; of versions, the newest.")
    ] = None,
    edit: Annotated[str | None, Option(help="Show what happened to the edit of this id.")] = None,
    namespace: NamespaceOption = None,
    versions: Annotated[bool, Option("--versions", help="Show versions instead of events.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the journal of a store: every edit from queued to live, failed or retired, by whom and in which version."""
    events: Sequence[Event] = ()
    listed_versions: Sequence[Version] = ()
    with opened(store, writer=False) as opened_store:
        if versions:
            listed_versions = sorted(opened_store.journal.versions(newest=limit), key=lambda version: version.number)
        else:
            events = opened_store.journal.events(since=since, namespace=namespace, edit_id=edit, limit=limit)
        numbers = sorted({event.ticket for event in events if event.ticket})
        tickets = {ticket.number: ticket for ticket in opened_store.journal.tickets(numbers=numbers)}
        current = opened_store.journal.version().number
        counts = dict(opened_store.journal.counts(edit_id=edit, namespace=namespace))
    if versions:
        rows = [
            (v.number, v.at[:19], v.kind, v.edits, v.author, v.reason, "collected" if v.collected else v.manifest[:12])
            for v in listed_versions
        ]
        show_table("Versions", ("", "at (UTC)", "kind", "edits", "by", "why", "content"), rows)
    else:
        _show_events(events, tickets)
    echo(f"version {current}; {', '.join(f'{n} {status}' for status, n in counts.items()) or 'no edits'}")
    if as_json:
        listed = [one.to_dict() for one in (listed_versions if versions else events)]
        show_json({"current": current, "counts": counts, "versions" if versions else "events": listed})


def _show_events(events: Sequence[Event], tickets: dict[int, Ticket]) -> None:
    rows = []
    for event in events:
        ticket = tickets.get(event.ticket or 0)
        what = f"{ticket.edit.prompt} → {ticket.edit.target}" if ticket else event.detail.get("reason")
        why = event.detail.get("why") or event.detail.get("problem") or (ticket.reason if ticket else None)
        if event.jumped:
            why = f"the clock was set by {event.jumped:+} s{f'; {why}' if why else ''}"
        rows.append(
            (event.number, event.at[:19], event.kind, ticket and ticket.edit.id, what, event.version, event.author, why)
        )
    show_table("Events", ("", "at (UTC)", "what", "edit", "", "version", "by", "why"), rows)


@app.command()
def diff(
    store: StoreArgument,
    before: Annotated[int, Argument(metavar="A", min=0, max=LARGEST, help="A version; 0: without edits.")],
    after: Annotated[int, Argument(metavar="B", min=0, max=LARGEST, help="Another.")],
    as_json: JsonOption = False,
) -> None:
    """Show which edits turn version A into version B."""
    with opened(store, writer=False) as opened_store:
        result = opened_store.diff(before, after)
    rows: list[tuple[Any, ...]] = [("+", edit.id, edit.prompt, None, edit.target) for edit in result.added]
    rows += [("-", edit.id, edit.prompt, edit.target, None) for edit in result.removed]
    rows += [("~", new.id, new.prompt, old.target, new.target) for old, new in result.changed]
    show_table(f"From version {before} to {after}", ("", "edit", "prompt", "before", "after"), rows)
    if as_json:
        added, removed = ([edit.to_dict() for edit in edits] for edits in (result.added, result.removed))
        changed = [{"before": old.to_dict(), "after": new.to_dict()} for old, new in result.changed]
        show_json({"added": added, "removed": removed, "changed": changed})


@app.command()
def rollback(
    store: StoreArgument,
    version: Annotated[int, Argument(min=0, max=LARGEST, help="The version to go back to; 0: without edits.")],
    author: AuthorOption = None,
    reason: ReasonOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the memory of an earlier version current again, bit for bit, as a new version."""
    with opened(store, writer=True) as opened_store:
        new_version = opened_store.rollback(version, author=author, reason=reason)
    _show_version(new_version, as_json)


@app.command()
@with_options
def delete(
    store: StoreArgument,
    edits: Annotated[list[str], Argument(metavar="ID...", help="Ids of the edits.")],
    *,
    edited: EditedModelOptions,
    author: AuthorOption = None,
    reason: ReasonOption = None,
    as_json: JsonOption = False,
) -> None:
    """Retire edits of a store: nothing of them is in the new version, and queued ones are never trained.

    Where they share weights with others, as in modes merge and retrieve, these others are written anew, for which the
    model is loaded; otherwise none is. The exit code is 3 where an edit did not verify after that. The versions before
    still hold them, until `wise store gc` collects them.
    """
    with opened(store, writer=True) as opened_store:

        def forget(state: MemoryState, edit_ids: Collection[str]) -> MemoryState:
            from wise.model import WiseModel
            from wise.namespaces import forget_edits, make_ready

            snapshot = opened_store.read()
            wrapped = WiseModel(*edited.base.load(), snapshot.config)
            make_ready(wrapped, snapshot, store, allow_precision=edited.allow_precision)
            return forget_edits(wrapped, state, edit_ids)

        before = opened_store.read().state.edit_ids
        new_version = opened_store.delete(edits, forget=forget, author=author, reason=reason)
        dropped = sorted({*before} - {*opened_store.read().state.edit_ids, *edits})
    if dropped:
        echo(f"no longer answered as edited, and dropped: {', '.join(dropped)}")
    _show_version(new_version, as_json)
    if dropped:
        raise typer.Exit(NOT_VERIFIED)


@app.command()
def check(
    store: StoreArgument,
    anchor: Annotated[Path | None, Option(help="File of `wise store anchor`: the history must follow it.")] = None,
    public_key: Annotated[Path | None, Option(help="The anchor must be signed with this Ed25519 key (PEM).")] = None,
    complete: Annotated[
        bool, Option("--complete", help="Verify all anew, and not only what changed since the last check.")
    ] = False,
    progress: ProgressOption = False,
    as_json: JsonOption = False,
) -> None:
    """Verify all of a store: files, references, versions, and the journal. Changes nothing of them.

    Every byte is read. What a check found whole is noted in `checked.json` beside the journal, and is not taken apart
    again if it is the same; --complete does so. The exit code is 4 where something is wrong.
    """
    from wise.memory.store.anchor import read_anchor

    if public_key is not None and anchor is None:
        raise ConfigError("--public-key was given without --anchor; give the file that was signed")
    known_anchor = None if anchor is None else read_anchor(anchor, public_key)
    with opened(store, writer=False) as opened_store, progress_bars(progress) as show:
        checked = None if complete else opened_store.checked_file
        result = opened_store.check(checked=checked, anchor=known_anchor, progress=show)
    if known_anchor is not None:
        signed = f"signed with the key {known_anchor.key}" if known_anchor.key else "not signed"
        echo(f"the anchor is of event {known_anchor.event}, made at {known_anchor.at}, {signed}")
    if result.erased_since:
        events = ", ".join(map(str, result.erased_since))
        echo(f"what the anchor stands for was changed by erasures since: see that events {events} are yours")
    figures = asdict(result)
    problems, since = figures.pop("problems"), figures.pop("erased_since")
    show_table("Store", ("", ""), figures.items())
    for problem in problems:
        echo(problem)
    echo("all is whole" if not problems else f"{len(problems)} problems")
    if as_json:
        show_json(figures | {"erased_since": since, "problems": problems})
    if problems:
        raise typer.Exit(NOT_WHOLE)


@app.command()
def anchor(
    store: StoreArgument,
    key: Annotated[Path | None, Option(help="Sign it with this Ed25519 key (PEM file). Left out: not signed.")] = None,
    output: Annotated[Path | None, Option(help="File to write. Left out: it is printed.")] = None,
) -> None:
    """Write down the head of a store's history, to be kept where those who can write the store cannot change it.

    `wise store check --anchor FILE` finds out later whether the history was rewritten or shortened since.
    """
    from wise.memory.store.anchor import write_anchor

    check_output("--output", output)
    with opened(store, writer=False) as opened_store:
        text = write_anchor(opened_store.anchor(), key)
    if output is None:
        echo(text)
    else:
        output.write_text(text + "\n")


@app.command()
def backup(
    store: StoreArgument,
    target: Annotated[Path, Argument(help="Folder to make.")],
    progress: ProgressOption = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a store of one moment into a new folder, also while a service uses it. The copy is verified as a whole.

    A store in PostgreSQL is backed up with pg_dump; the command says how.
    """
    _copy_store(store, target, progress, as_json)


@app.command()
def restore(
    backup: Annotated[Path, Argument(metavar="BACKUP", help="Folder that `wise store backup` made.")],
    target: Annotated[Path, Argument(metavar="STORE", help="Folder to make.")],
    progress: ProgressOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a store of a backup, which stays as it is. The store is verified as a whole. Nothing is overwritten."""
    _copy_store(str(backup), target, progress, as_json)


def _copy_store(store: str, target: Path, progress: bool, as_json: bool) -> None:
    with opened(store, writer=False) as opened_store, progress_bars(progress) as show:
        result = opened_store.backup(target, progress=show)
    echo(
        f"{target} is whole: {result.tickets} edits and {result.versions} versions, {result.blobs} files of "
        f"{result.bytes} bytes beside the journal"
    )
    if as_json:
        show_json({name: value for name, value in asdict(result).items() if name != "problems"})


@app.command()
def erase(
    store: StoreArgument,
    edits: Annotated[list[str], Argument(metavar="ID...", help="Ids of the edits, which must be deleted first.")],
    with_author: Annotated[bool, Option("--with-author", help="Erase from their events who requested them.")] = False,
    author: AuthorOption = None,
    reason: ReasonOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take the text and the tensors of edits out of every file of a store. This cannot be undone.

    Their ids, dates and digests stay, and that they were erased, when, by whom and why. Versions that held them can no
    longer be read or rolled back to. Backups and packs that were made before are not changed.
    """
    with opened(store, writer=True) as opened_store:
        result = opened_store.erase(edits, author=author, reason=reason, with_author=with_author)
    echo(
        f"erased {len(result.tickets)} edits; {len(result.versions)} versions that held them can no longer be read, "
        f"and {result.blobs} files were removed; backups and packs that were made before are not changed"
    )
    for field, others in result.left.items():
        echo(f"their {field} is said by other edits too, which keep it: {', '.join(others)}")
    if as_json:
        show_json(result.to_dict())


@app.command()
def gc(
    store: StoreArgument,
    keep: Annotated[int, Option(min=1, max=LARGEST, help="Versions to keep, the newest.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Collect old versions and the files that only they need; versions that somebody reads stay."""
    with opened(store, writer=True) as opened_store:
        result = opened_store.gc(keep=keep)
    echo(
        f"collected {len(result.versions)} versions, removed {result.blobs} files of {result.bytes} bytes; "
        f"{len(result.pinned)} versions are being read and stay"
    )
    if as_json:
        show_json(asdict(result))


@app.command()
def export(
    store: StoreArgument,
    folder: Annotated[Path, Argument(help="Folder to write: a memory, with what the journal says of its edits.")],
    version: Annotated[int | None, Option(min=1, max=LARGEST, help="Left out: the current one.")] = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version of a store as a knowledge pack, which `wise store import` and `wise ask --memory` read."""
    with opened(store, writer=False) as opened_store:
        count = opened_store.export_pack(folder, version=version, namespace=namespace)
    echo(f"exported to {folder}; edits: {count}")
    if as_json:
        show_json({"edits": count, "output": str(folder)})


@app.command("import")
def import_(
    store: StoreArgument,
    pack: Annotated[Path, Argument(help="Folder of a knowledge pack, or of a memory that 'wise edit' saved.")],
    author: AuthorOption = None,
    reason: ReasonOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take the edits of a knowledge pack into a store, which is made where there is none, as one new version."""
    from wise.memory.store.pack import read_pack
    from wise.memory.store.store import Store

    read_pack(pack)  # what is refused makes no store
    with Store.open(store) as opened_store:
        made = opened_store.import_pack(pack, author=author, reason=reason)
    _show_version(made, as_json)


def _show_version(version: Version, as_json: bool) -> None:
    echo(f"version {version.number} ({version.kind}) is current; edits: {version.edits}")
    if as_json:
        show_json(version.to_dict())
