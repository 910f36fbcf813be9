"""Errands: what a process that is not the writer has the writer do, and the answer, by way of the store.

Asked, begun, answered, taken away: each in one transaction, so an errand is begun once, by one writer. What a writer
had begun when it ended is answered by the next one with just that. Nothing of this is history: an answer goes when it
is taken away, and what nobody comes for when its time is over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from wise.memory.storage.backend import Backend, Execute
from wise.memory.ticket import now

ASKED, BEGUN, ANSWERED = "asked", "begun", "answered"


@dataclass(frozen=True, kw_only=True)
class Errand:
    """What is to be done."""

    id: str
    name: str
    arguments: dict[str, Any]
    """JSON values."""


class Errands:
    """Those of one store. Every method raises StoreError where the store cannot be read or written."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    # -- for whoever asks -------------------------------------------------------------------------

    def ask(self, name: str, arguments: Mapping[str, Any], seconds: float) -> str:
        """Asks for something to be begun within so many seconds; the id of the errand."""
        errand = uuid4().hex
        with self._backend.transaction() as execute:
            _forget_late(execute)
            [(last,)] = execute("SELECT COALESCE(MAX(number), 0) FROM errands")
            execute(
                "INSERT INTO errands (id, number, name, arguments, until, status) VALUES (?, ?, ?, ?, ?, ?)",
                errand, last + 1, name, json.dumps(arguments), now(after=seconds), ASKED,
            )
        return errand

    def collect(self, errand: str) -> dict[str, Any] | None:
        """The answer, which is taken away; None where there is none yet."""
        if not self._any("id = ? AND status = ?", errand, ANSWERED):
            return None
        with self._backend.transaction() as execute:
            rows = execute("SELECT answer FROM errands WHERE id = ?", errand)
            execute("DELETE FROM errands WHERE id = ?", errand)
        return next((dict(json.loads(answer)) for (answer,) in rows), None)

    def withdraw(self, errand: str) -> bool:
        """Takes an errand back, with its answer if there is one; whether nobody had begun it, nor ever will."""
        with self._backend.transaction() as execute:
            begun = execute("SELECT id FROM errands WHERE id = ? AND status <> ?", errand, ASKED)
            execute("DELETE FROM errands WHERE id = ?", errand)
        return not begun

    # -- for the writer ---------------------------------------------------------------------------

    def begin(self) -> Errand | None:
        """The oldest that is asked for and whose time is not over, now begun; None where there is none."""
        if not self._any("status = ?", ASKED):
            return None
        with self._backend.transaction() as execute:
            _forget_late(execute)
            rows = execute("SELECT id, name, arguments FROM errands WHERE status = ? ORDER BY number LIMIT 1", ASKED)
            for errand, _, _ in rows:
                execute("UPDATE errands SET status = ? WHERE id = ?", BEGUN, errand)
        return next((Errand(id=i, name=name, arguments=json.loads(told)) for i, name, told in rows), None)

    def answer(self, errand: str, told: Mapping[str, Any]) -> None:
        """Answers an errand that was begun; nothing comes of it where nobody waits for it any more."""
        with self._backend.transaction() as execute:
            execute(
                "UPDATE errands SET status = ?, answer = ? WHERE id = ? AND status = ?",
                ANSWERED, json.dumps(told), errand, BEGUN,
            )

    def abandon(self, told: Mapping[str, Any]) -> None:
        """Answers all that was begun: whoever had begun it has ended."""
        if self._any("status = ?", BEGUN):
            with self._backend.transaction() as execute:
                execute(
                    "UPDATE errands SET status = ?, answer = ? WHERE status = ?", ANSWERED, json.dumps(told), BEGUN
                )

    def _any(self, condition: str, *values: str) -> bool:
        """Asked often, and so without a transaction that writes."""
        with self._backend.reading() as execute:
            return bool(execute(f"SELECT id FROM errands WHERE {condition} LIMIT 1", *values))


def _forget_late(execute: Execute) -> None:
    """What was begun stays: its writer, or the next one, answers it."""
    execute("DELETE FROM errands WHERE until < ? AND status <> ?", now(), BEGUN)
