"""A knowledge pack: one version of a store as a folder that can be carried elsewhere.

It is a saved memory (`wise.memory.artifact`), which `WiseModel.from_pretrained` loads as it is, and beside it

    tickets.json    of each edit: reason, valid from and until, and what was verified; a SHA-256 over itself, and
                    that of the memory it belongs to

A folder that `save_pretrained` wrote is a pack without tickets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wise.config import WiseConfig
from wise.errors import ArtifactError, EditError, StoreError
from wise.memory.artifact import CONFIG_FILE, WRITTEN, digest_of_json, load_memory, save_memory, sealed
from wise.memory.bounded_file import MOST_TEXT, bounded
from wise.memory.fingerprint import Fingerprint
from wise.memory.folder import replaced_folder
from wise.memory.key_space import Space
from wise.memory.model_card import keep_card
from wise.memory.state import MemoryState
from wise.memory.store.backends.base import digest_of
from wise.memory.store.edit_request import EditRequest, Ticket
from wise.memory.store.segments import encode_space
from wise.memory.store.versions import Snapshot

TICKETS_FILE = "tickets.json"
FORMAT = "wise-tickets"
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Pack:
    digest: str
    """SHA-256 that stands for the memory in it."""
    config: WiseConfig
    base: Fingerprint
    state: MemoryState
    requests: tuple[EditRequest, ...]
    """One for each edit of the state, in its order."""
    verified: Mapping[str, Mapping[str, Any]]
    """By edit id."""


def write_pack(folder: Path, snapshot: Snapshot, tickets: Sequence[Ticket], namespace: str | None) -> int:
    """Writes a pack, whole or not at all; of one namespace, where it is given. The number of edits in it.

    Raises StoreError where there is nothing to write, or slots hold edits of other namespaces too; ArtifactError
    where the folder holds anything but a pack.
    """
    state = snapshot.state
    if namespace is not None:
        others = [edit.id for edit in state.edits if edit.namespace != namespace]
        if state.sharing(others):
            raise StoreError(f"namespace {namespace!r} shares slots with others here; export all namespaces")
        state = state.without(others)
    if snapshot.config is None or snapshot.base is None or not state.edits:
        raise StoreError("there are no edits to export; `wise store log` names versions and what became live in them")
    if snapshot.config.mode == "merge" and len(state.slots) > 1:
        names = ", ".join(sorted({edit.namespace for edit in state.edits}))
        raise StoreError(f"a merged memory is of one namespace; export one of {names} by itself")
    by_id = {ticket.edit.id: ticket for ticket in tickets}
    with replaced_folder(folder, ours=(*WRITTEN, TICKETS_FILE)) as new:
        save_memory(new, config=snapshot.config, state=state, base=snapshot.base)
        keep_card(folder, new)
        data = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "memory": digest_of((new / CONFIG_FILE).read_bytes()),
            "tickets": {edit.id: {name: getattr(by_id[edit.id], name) for name in _FIELDS} for edit in state.edits},
        }
        (new / TICKETS_FILE).write_bytes(sealed(data))
    return len(state.edits)


def read_pack(folder: Path) -> Pack:
    """Raises ArtifactError where there is no pack, or it is damaged."""
    config, state, base = load_memory(folder)
    memory = digest_of((folder / CONFIG_FILE).read_bytes())
    fields = _read_tickets(folder / TICKETS_FILE, memory) if os.path.lexists(folder / TICKETS_FILE) else {}
    try:
        requests = tuple(
            EditRequest(edit=edit, **{name: fields.get(edit.id, {}).get(name) for name in _TEXTS})
            for edit in state.edits
        )
    except (EditError, TypeError) as error:
        raise ArtifactError(f"{folder / TICKETS_FILE} is refused: {error}") from error
    verified = {edit_id: ticket["verified"] for edit_id, ticket in fields.items() if ticket.get("verified")}
    return Pack(digest=memory, config=config, base=base, state=state, requests=requests, verified=verified)


def _read_tickets(file: Path, memory: str) -> dict[str, Any]:
    try:
        data = json.loads(bounded(file, MOST_TEXT).read_bytes(), parse_constant=_no_number)
        whole = data.pop("sha256") == digest_of_json(data) and data["format"] == FORMAT and data["memory"] == memory
        if not whole or data["schema_version"] != SCHEMA_VERSION:
            raise ValueError("it was changed, is of another memory, or a newer wise-runtime wrote it")
        for edit_id, ticket in data["tickets"].items():
            _check_ticket(edit_id, ticket)
        return dict(data["tickets"])
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} is refused: {error}; copy the pack again, or delete this file") from error


def _no_number(name: str) -> None:
    raise ValueError(f"it holds {name}, where a number was expected")


def _check_ticket(edit_id: str, ticket: object) -> None:
    """Raises ValueError for what a ticket of ours never says."""
    where = f"ticket {edit_id!r:.60}"
    if not isinstance(ticket, dict) or not ticket.keys() <= {*_FIELDS}:
        raise ValueError(f"{where}: {ticket!r:.60} was given, an object of our fields was expected")
    for name in _TEXTS:
        if not isinstance(ticket.get(name), str | None):
            raise ValueError(f"{where}: field {name!r} is {ticket[name]!r:.60}, a text was expected")
    verified = {} if ticket.get("verified") is None else ticket["verified"]
    if not isinstance(verified, dict) or len(json.dumps(verified)) > MOST_OUTCOME:
        expected = f"an object of up to {MOST_OUTCOME} characters was expected"
        raise ValueError(f"{where}: field 'verified' is {verified!r:.60}, {expected}")
    json.dumps(verified, ensure_ascii=False).encode()  # no half of a surrogate pair
    for name, value in verified.items():
        if not _fits(name, value):
            raise ValueError(f"{where}: field 'verified.{name:.40}' is {value!r:.60}")


def _fits(name: str, value: object) -> bool:
    """Whether a field of an outcome is as `wise.training.report.Outcome` has it; others are plain values."""
    if name in ("also_answers", "tried"):
        return isinstance(value, list) and all(isinstance(text, str) for text in value)
    objects = {"holds": bool, "said": str, "before": str}
    if name in objects:
        return isinstance(value, dict) and all(isinstance(part, objects[name]) for part in value.values())
    if name in ("steps", "loss", "milliseconds"):
        return value is None or type(value) in (int, float)
    if name in ("id", "status", "answer", "why"):
        return isinstance(value, str)
    return isinstance(value, str | int | float | None)


_TEXTS = ("reason", "valid_from", "valid_until")
_FIELDS = (*_TEXTS, "verified")
MOST_OUTCOME = 1_000_000
"""Characters of what was verified of an edit, as JSON: ours have some ten thousand, of Chinese six times as many."""


def merged(snapshot: Snapshot, pack: Pack) -> MemoryState:
    """The memory of a store with the edits of a pack after its own; a pack's edit takes the place of one of its prompt.

    Raises StoreError where they were not made on the same base with the same settings and router, or share slots.
    """
    if snapshot.base is not None and snapshot.base != pack.base:
        raise StoreError("the pack was made on another base; import it into a store of its own")
    if not snapshot.state.edits:
        return pack.state
    mine, theirs = snapshot.state, pack.state
    if snapshot.config != pack.config:
        raise StoreError("the pack was made with other settings; import it into a store of its own")
    if any(slot.shared for slot in (*mine.slots, *theirs.slots)):
        raise StoreError("slots are shared in this mode and cannot be put together; import into a store of its own")
    if _digest(mine.key_space) != _digest(theirs.key_space):
        raise StoreError("the pack was made with another router; import it into a store of its own")
    coming = {(edit.prompt, edit.namespace) for edit in theirs.edits}
    kept = mine.without([edit.id for edit in mine.edits if (edit.prompt, edit.namespace) in coming])
    slots = [slot.numbered(len(kept.slots) + i) for i, slot in enumerate(theirs.slots)]
    return replace(
        kept, edits=(*kept.edits, *theirs.edits), slots=(*kept.slots, *slots), keys={**kept.keys, **theirs.keys}
    )


def _digest(space: Space | None) -> str:
    return "" if space is None else digest_of(encode_space(space))
