"""The editor: the store's one writer. It trains what is queued, and deletes, rolls back and previews when it is told.

All of it happens one after the other, so a change never meets another one half way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from wise.edits import Edit
from wise.errors import EditError, RefusedError, StoreError, WiseError
from wise.memory.store.edit_request import Ticket, Version
from wise.memory.store.store import Store
from wise.model import WiseModel
from wise.namespaces import edited, forgotten, make_ready, within
from wise.serve.commands import ENDED, answer_of
from wise.serve.heap import trim
from wise.training.report import FAILED

logger = logging.getLogger(__name__)


class Editor:
    """Edits `store` by a model of its own, which serves nobody."""

    def __init__(self, model: WiseModel, store: Store, *, batch: int, keep: int) -> None:
        """batch: edits that are trained together; keep: versions that stay readable.

        Raises StoreError where the store is of another base or other settings.
        """
        make_ready(model, store.read(), store.backend.place)
        store.commands.abandon(ENDED)
        self._model, self._store, self._batch, self._keep = model, store, batch, keep

    def work(self) -> bool:
        """Does what another replica wants done, or else trains and commits the oldest of what is queued.

        False where there is nothing to do.

        Raises StoreError, with all of it queued again where that can be noted, where the disk does not take it.
        """
        command = self._store.commands.claim()
        if command is not None:
            self._store.commands.answer(command.id, answer_of(self, command.name, command.arguments))
            return True
        over = self._store.expired()
        if over:
            self._deleted([ticket.edit.id for ticket in over], author=None, reason="its time is over")
        tickets = self._store.claim(self._batch)
        if not tickets:
            return bool(over)
        try:
            self._train(tickets)
        except StoreError as error:
            if not isinstance(error, RefusedError):
                self._store.requeue(tickets, why=str(error))
                raise
            self._one_by_one(tickets)
        except Exception as error:
            if not isinstance(error, EditError):
                logger.exception("training %d edits failed", len(tickets))
            self._one_by_one(tickets)
        return True

    def _one_by_one(self, tickets: Sequence[Ticket]) -> None:
        """After a batch that could not be trained: what is at fault fails alone."""
        for ticket in tickets:
            try:
                self._train([ticket])
            except Exception as error:
                if isinstance(error, StoreError) and not isinstance(error, RefusedError):
                    raise
                if not isinstance(error, WiseError):
                    logger.exception("training edit %s failed", ticket.edit.id)
                why = {"status": FAILED, "why": f"{type(error).__name__}: {error}"[:500]}
                self._store.fail([ticket], detail=why)

    def _train(self, tickets: Sequence[Ticket]) -> None:
        edits = [ticket.edit for ticket in tickets]
        before = self._store.read()
        state, outcomes = edited(self._model, before.state, edits)
        authors = sorted({edit.author for edit in edits if edit.author})
        version = self._store.commit(
            tickets,
            state,
            parent=before.version,
            config=self._model.wise_config,
            base=self._model.fingerprint(),
            outcomes={outcome.id: asdict(outcome) for outcome in outcomes},
            author=", ".join(authors) or None,
        )
        if version.number % self._keep == 0:
            self._store.gc(keep=self._keep)
        trim()

    # -- commands ---------------------------------------------------------------------------------

    def do(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Runs one of the commands below, by its name."""
        commands: dict[str, Callable[..., dict[str, Any]]] = {
            "delete": self.delete,
            "rollback": self.rollback,
            "preview": self.preview,
        }
        return commands[name](**arguments)

    def delete(self, edit_ids: list[str], author: str | None, reason: str | None) -> dict[str, Any]:
        return _told(self._deleted(edit_ids, author, reason))

    def _deleted(self, edit_ids: Sequence[str], author: str | None, reason: str | None) -> Version:
        forget = partial(forgotten, self._model)
        return self._store.delete(edit_ids, forget=forget, author=author, reason=reason)

    def rollback(self, version: int, author: str | None, reason: str | None) -> dict[str, Any]:
        return _told(self._store.rollback(version, author=author, reason=reason))

    def preview(self, edit: dict[str, Any], prompts: list[str]) -> dict[str, Any]:
        """What an edit would make of its own prompt and of others, without making it."""
        wanted = Edit.from_dict(edit)
        before = within(self._store.read().state, wanted.namespace)
        asked = [self._model.encoder.own_prompt(wanted), *prompts]
        with self._model.evaluating():
            after, report = self._model.trainer.edit(before, [wanted], serve=self._model.serving)
        answers = {}
        for name, state in (("before", before), ("after", after)):
            with self._model.serving(state):
                answers[name] = self._model.ask(asked)
        told = [
            {"prompt": old.prompt, "before": old.text, "after": new.text}
            for old, new in zip(answers["before"], answers["after"], strict=True)
        ]
        return {"outcome": asdict(report.outcomes[0]), "replaced": list(report.replaced), "answers": told}


def _told(version: Version) -> dict[str, Any]:
    return version.to_dict()
