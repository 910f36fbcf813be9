"""The command queue: commands that another process gives to the writer of a store, and the writer's answers.

Each step (enqueue, claim, answer, take the answer) is one transaction, so one writer claims a command, once. Commands
that a writer had claimed when it ended are answered by the next writer, which says just that. The queue is not part of
the history: an answer is removed when it is taken, and a command that is not claimed is removed when its time is over.
Each row carries a digest of itself: a command that was damaged is never run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from wise.memory.artifact import digest_of_json
from wise.memory.store.backends.base import Backend, Execute, Scan
from wise.memory.store.edit_request import now

QUEUED, CLAIMED, ANSWERED = "queued", "claimed", "answered"
_COLUMNS = "id, number, name, arguments, until, status, answer, digest"
_COMMANDS = f"SELECT {_COLUMNS} FROM commands"


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that the writer has claimed."""

    id: str
    name: str
    arguments: dict[str, Any]
    """JSON values."""


class CommandQueue:
    """The queue of one store. Every method raises StoreError where the store cannot be read or written."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    # -- for any process --------------------------------------------------------------------------

    def enqueue(self, name: str, arguments: Mapping[str, Any], seconds: float) -> str:
        """Queues a command that must be claimed within so many seconds. Returns its id."""
        command = uuid4().hex
        with self._backend.transaction() as execute:
            _remove_late(execute)
            [(last,)] = execute("SELECT COALESCE(MAX(number), 0) FROM commands")
            row = (command, last + 1, name, json.dumps(arguments), now(after=seconds), QUEUED, None)
            execute(f"INSERT INTO commands ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", *row, digest_of_json(row))
        return command

    def take_answer(self, command: str) -> dict[str, Any] | None:
        """The answer, which is removed; None where there is none yet."""
        if not self._any("id = ? AND status = ?", command, ANSWERED):
            return None
        with self._backend.transaction() as execute:
            rows = _sound(execute(f"{_COMMANDS} WHERE id = ?", command))
            execute("DELETE FROM commands WHERE id = ?", command)
        return next((dict(json.loads(row[6])) for row in rows), None)

    def withdraw(self, command: str) -> bool:
        """Removes a command, with its answer if there is one. Returns whether no writer had claimed it."""
        with self._backend.transaction() as execute:
            claimed = execute("SELECT id FROM commands WHERE id = ? AND status <> ?", command, QUEUED)
            execute("DELETE FROM commands WHERE id = ?", command)
        return not claimed

    # -- for the writer ---------------------------------------------------------------------------

    def claim(self) -> Command | None:
        """The oldest queued command whose time is not over, now claimed; None where there is none."""
        if not self._any("status = ?", QUEUED):
            return None
        with self._backend.transaction() as execute:
            _remove_late(execute)
            rows = _sound(execute(f"{_COMMANDS} WHERE status = ? ORDER BY number", QUEUED))[:1]
            for row in rows:
                _update(execute, row, CLAIMED, None)
        return next((Command(id=row[0], name=row[2], arguments=json.loads(row[3])) for row in rows), None)

    def answer(self, command: str, answer: Mapping[str, Any]) -> None:
        """Answers a claimed command. Does nothing where it was withdrawn."""
        with self._backend.transaction() as execute:
            for row in execute(f"{_COMMANDS} WHERE id = ? AND status = ?", command, CLAIMED):
                _update(execute, row, ANSWERED, json.dumps(answer))

    def claimed(self) -> set[str]:
        """The ids of the commands that were claimed, and neither answered nor withdrawn."""
        with self._backend.reading() as execute:
            return {str(row[0]) for row in execute("SELECT id FROM commands WHERE status = ?", CLAIMED)}

    def abandon(self, answer: Mapping[str, Any]) -> None:
        """Answers all claimed commands: the writer that claimed them has ended."""
        if self._any("status = ?", CLAIMED):
            with self._backend.transaction() as execute:
                for row in execute(f"{_COMMANDS} WHERE status = ?", CLAIMED):
                    _update(execute, row, ANSWERED, json.dumps(answer))

    def _any(self, condition: str, *values: str) -> bool:
        """Called often, and so without a transaction that writes."""
        with self._backend.reading() as execute:
            return bool(execute(f"SELECT id FROM commands WHERE {condition} LIMIT 1", *values))


def damaged_commands(scan: Scan) -> list[str]:
    """The commands that are not what was queued or answered, by id."""
    return [str(row[0]) for row in scan(f"{_COMMANDS} ORDER BY number") if not _sound([row])]


def _sound(rows: Iterable[Sequence[Any]]) -> list[Sequence[Any]]:
    return [row for row in rows if _digest(row[:-1]) == row[-1]]


def _digest(row: Sequence[Any]) -> str:
    try:
        return digest_of_json(list(row))
    except (TypeError, ValueError):
        return "none: it holds bytes"


def _update(execute: Execute, row: Sequence[Any], status: str, answer: str | None) -> None:
    changed = [*row[:5], status, answer]
    new = (status, answer, _digest(changed))
    execute("UPDATE commands SET status = ?, answer = ?, digest = ? WHERE id = ?", *new, row[0])


def _remove_late(execute: Execute) -> None:
    """Claimed commands stay: their writer, or the next one, answers them."""
    execute("DELETE FROM commands WHERE until < ? AND status <> ?", now(), CLAIMED)
