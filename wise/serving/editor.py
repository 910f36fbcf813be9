"""The editor of a store: its one writer, which trains what is queued and runs commands.

Two threads call it, so that no command waits for training:

* **The thread of the model** trains, and does what else needs the model: previews, and deletes of edits that share a
  slot with others (`merge`, `retrieve`). Between two steps of training it looks whether it must end, and runs what
  waits for the model in between: a delete at once, a preview as soon as training has had as much time as the previews
  before it. So previews take half of the time at most, and wait for one another but not for the end of a long edit.
* **The thread of commands** deletes, erases, rolls back and withdraws what is in training, in the store alone. It also
  does what other replicas ask for, until they withdraw it, and ends what has expired.

Training begins at one version and ends with a commit, maybe at a later one. If edits were only deleted in between,
which leaves no trace in others' slots, the new edits are committed without them, as if the deletes had come a moment
later. In every other case the edits are trained again, from the later version. An edit that is withdrawn while it is
trained is left out, and the others of its batch are trained again. After an erasure they are trained again too, and
previews that had begun fail, so that nothing is written that repeats what was erased.

An edit fails, with the reason, if it is larger than the settings allow, takes too much CPU time or memory, or was in
training when an editor ended twice. What fails in a batch is trained by itself, so that the others are not harmed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch

from wise.edits import Edit
from wise.errors import EditError, RefusedError, StoreError, WiseError, listed
from wise.memory.state import MemoryState
from wise.memory.store.changes import Forget
from wise.memory.store.edit_request import QUEUED, Ticket, Version
from wise.memory.store.erase import Erasure
from wise.memory.store.store import EDITS_AT_ONCE, ENDED, Store
from wise.memory.store.versions import Snapshot
from wise.model import WiseModel
from wise.namespaces import edited, forget_edits, make_ready, within
from wise.serving.edit_size import check_size
from wise.serving.editor_client import ENDED_MEANWHILE, KINDS
from wise.serving.follower import trim_heap
from wise.serving.logs import error_without_texts
from wise.serving.settings import Settings
from wise.training.generation import checking
from wise.training.report import FAILED

logger = logging.getLogger(__name__)

INTERRUPTED = {"kind": "StoreError", "problem": ENDED_MEANWHILE}
"""The answer to a command that was begun by a writer that no longer runs."""
PREPARING = "the editor is still preparing the model; try again later"
"""The problem of a command that needs the model before it is there."""
LEAVING = "the service ended"
"""Why a ticket was queued again when an editor ended in order."""
LOST = "the store was lost"
"""Why a ticket was queued again when an editor lost its store, and opened it again."""
ENDINGS = 2
"""An edit that was in training when so many editors ended without a word is not trained any more."""
ASKED_AT_ONCE = 8
"""Texts of a preview that are asked between two looks at what else waits."""
TELL = 0.5
"""Seconds between two reports of progress."""

EDIT, PREVIEW, DELETE = "edit", "preview", "delete"
"""What needs the model."""

Answer = Callable[[dict[str, Any]], None]
"""Called with the answer to a command, in either thread."""
Tell = Callable[..., None]
"""Called with what changed of the editor's status, by name."""


class Leave(Exception):
    """The editor is to end."""


class LimitError(EditError):
    """Something takes longer, or more memory, than the settings allow."""


class _Restart(Exception):
    """What is trained must be trained again: from another version, or without an edit that was withdrawn."""


class _Job(NamedTuple):
    """A command that waits for the model."""

    name: str
    arguments: Mapping[str, Any]
    answer: Answer
    is_wanted: Callable[[], bool]
    """Whether anybody still waits for the answer."""


@dataclass(eq=False)
class _Work:
    """What the thread of the model does, and the CPU seconds that it may use. `goes_on` raises if it must end."""

    kind: str
    seconds: float
    goes_on: Callable[[], None]
    started_at: float = field(default_factory=time.thread_time)
    aside: float = 0.0
    """Seconds of other work that was done in between."""

    def check(self) -> None:
        self.goes_on()
        if time.thread_time() - self.started_at - self.aside > self.seconds:
            setting = f"{self.kind}_seconds={self.seconds:g}"
            raise LimitError(f"it took more CPU time than {setting} s; give fewer or shorter texts, or allow more")


class Editor:
    """Edits `store`, which was opened as its writer. See the head of this file for who may call what."""

    def __init__(self, store: Store, settings: Settings, tell: Tell = lambda **_: None) -> None:
        store.commands.abandon(INTERRUPTED)
        self._store, self._settings, self._tell = store, settings, tell
        self._prepared: WiseModel | None = None
        self._changing = threading.RLock()
        """Held while the store is changed. Guards `_training` and `_stale`."""
        self._training: dict[str, Ticket] = {}
        """By edit id, what is claimed and neither committed nor failed nor withdrawn."""
        self._stale = False
        """What is trained now began at a version that it cannot follow."""
        self._erasures = 0
        oldest = store.journal.tickets(status=QUEUED, limit=settings.edit_batch or EDITS_AT_ONCE)
        self._careful = any(map(self._endings, oldest))
        """Edits are trained one by one: one of them may have ended an editor."""
        self._news = threading.Condition()
        """Guards the jobs."""
        self._deletes: deque[_Job] = deque()
        self._previews: deque[_Job] = deque()
        self._from_replicas: set[str] = set()
        """Ids of the commands that other replicas wait for."""
        self._expiring: set[str] = set()
        self._not_expired = ""
        """Why edits could not be deleted whose time is over."""
        self._collected = 0
        """The current version when old ones were last collected."""
        self._works: list[_Work] = []
        """What is being done, the innermost last."""
        self._preview_due = 0.0
        """CPU time of this thread from which training makes way for a preview."""
        self._reported_at = 0.0
        self._leaving = threading.Event()

    # -- the thread of the model --------------------------------------------------------------------

    def prepare(self, model: WiseModel) -> None:
        """Takes a model, which serves no requests, to edit with. Raises StoreError if it does not fit the store."""
        make_ready(
            model,
            self._store.read(),
            self._store.backend.place,
            allow_precision=self._settings.allow_precision,
            stage=lambda name: self._tell(stage=name),
        )
        self._prepared = model

    @property
    def is_lost(self) -> bool:
        """Whether the store must be opened again; nothing that this editor does counts any more."""
        return self._store.backend.is_lost

    def give_up(self) -> None:
        """Answers what waits for the model, and takes nothing more that needs it."""
        with self._news:
            self._prepared = None
            waiting = [*self._deletes, *self._previews]
        for job in waiting:
            job.answer(INTERRUPTED)

    @property
    def _model(self) -> WiseModel:
        if self._prepared is None:
            raise StoreError(PREPARING)
        return self._prepared

    def wait(self, seconds: float) -> None:
        """Returns when a job comes, or after so many seconds."""
        with self._news:
            if not (self._deletes or self._previews or self._leaving.is_set()):
                self._news.wait(seconds)

    def work(self) -> bool:
        """Runs what waits for the model, and trains and commits the oldest queued edits. Returns False if there was
        nothing to do. Raises StoreError if the store does not take the result, and Leave after `leave`; the edits are
        then queued again."""
        try:
            self._leave_if_told()
            ran = self._run_next(self._deletes)
            self._collect()
            self._queue_again("the store did not take it")  # what could not be queued again before
            tickets = self._claim()
            if not tickets:
                return self._run_next(self._previews) or ran
            unfinished = [ticket for ticket in tickets if ticket.edit.id in self._training]
            if unfinished:
                self._train_all(unfinished)
        except (StoreError, Leave) as error:
            self._queue_again(str(error) or LEAVING)
            raise
        return True

    def _claim(self) -> list[Ticket]:
        with self._changing:
            self._leave_if_told()  # what is claimed after `leave` would not be queued again
            tickets = self._store.claim(1 if self._careful else self._most())
            self._training = {ticket.edit.id: ticket for ticket in tickets}
            endings = {ticket.edit.id: self._endings(ticket) for ticket in tickets}
            self._careful = self._careful and any(endings.values())
            if len(tickets) > 1 and any(endings.values()):
                self._careful = True
                self._queue_again("an edit beside it was in training when an editor ended: each is trained by itself")
                return self._claim()
        for ticket in tickets:
            if endings[ticket.edit.id] >= ENDINGS:
                why = f"quarantined: {ENDINGS} editors ended while it was in training"
                how = "the log of the service says how. Submit it again to have it tried again"
                self._fail(ticket, f"{why}; {how}", why)
        return list(tickets)

    def _most(self) -> int:
        """Edits that are trained together."""
        return self._settings.edit_batch or self._model.trainer.writer.at_once * (self._settings.edit_workers or 1)

    def _endings(self, ticket: Ticket) -> int:
        """How many editors have ended without a word while it was in training."""
        events = self._store.journal.events(ticket=ticket.number)
        return sum(event.kind == QUEUED and event.detail.get("why") == ENDED for event in events)

    def _train_all(self, tickets: Sequence[Ticket]) -> None:
        """Trains edits together. If that fails, each by itself, so that only those at fault fail."""
        try:
            return self._train(tickets)
        except RefusedError as error:
            failure: Exception = error
        except (Leave, StoreError):
            raise
        except Exception as error:
            if not isinstance(error, WiseError):
                fields = {"edits": [ticket.edit.id for ticket in tickets]}
                logger.exception("training failed", extra={"fields": fields})
            failure = _named(error, self._settings)
        unfinished = [ticket for ticket in tickets if ticket.edit.id in self._training]
        trim_heap()
        if len(unfinished) == 1 == len(tickets):
            self._fail(unfinished[0], f"{type(failure).__name__}: {failure}"[:500], error_without_texts(failure))
            return
        for ticket in unfinished:
            self._train_all([ticket])

    def _fail(self, ticket: Ticket, why: str, logged: str) -> None:
        """why: for the store, which can erase it. logged: the same without texts of the edit."""
        with self._changing:
            if ticket.edit.id in self._training:
                self._store.fail([ticket], detail={"status": FAILED, "why": why})
                del self._training[ticket.edit.id]  # not before: what the store did not take is queued again
        fields = {"edit": ticket.edit.id, "ticket": ticket.number, "error": logged}
        logger.warning("an edit failed; GET /v1/edits/ID says why", extra={"fields": fields})

    def _train(self, tickets: Sequence[Ticket]) -> None:
        """Trains edits until they are committed, or withdrawn."""
        for ticket in tickets:
            check_size(ticket.edit, self._model.encoder, self._settings)
        try:
            while tickets := [ticket for ticket in tickets if ticket.edit.id in self._training]:
                with suppress(_Restart):
                    return self._attempt(tickets)
                logger.info("trained again", extra={"fields": {"edits": [ticket.edit.id for ticket in tickets]}})
        finally:
            self._tell(training=[], done=0)

    def _attempt(self, tickets: Sequence[Ticket]) -> None:
        edits = [ticket.edit for ticket in tickets]
        start = time.monotonic()
        logger.info("training", extra={"fields": {"edits": [edit.id for edit in edits]}})
        self._tell(training=[edit.id for edit in edits], done=0)
        with self._changing:
            before, self._stale = self._store.read(), False

        def goes_on() -> None:
            if self._stale or any(edit.id not in self._training for edit in edits):
                raise _Restart

        with self._working(_Work(EDIT, self._settings.edit_seconds, goes_on)):
            state, outcomes = edited(
                self._model, before.state, edits, progress=self._show_progress, check=self._between_steps
            )
        with self._changing:
            goes_on()
            current = self._store.read()
            version = self._store.commit(
                tickets,
                _following(state, before, current),
                parent=current.version,
                config=self._model.wise_config,
                base=current.base or self._model.fingerprint(),  # a store stays one of the precision it began in
                outcomes={outcome.id: asdict(outcome) for outcome in outcomes},
                author=", ".join(sorted({edit.author for edit in edits if edit.author})) or None,
            )
            for edit in edits:
                del self._training[edit.id]
        spent = round(time.monotonic() - start, 3)
        logger.info("committed", extra={"fields": {"version": version.number, "seconds": spent}})
        trim_heap()

    def _collect(self) -> None:
        """Collects old versions once so many came as are kept, whatever made them."""
        keep, current = self._settings.keep_versions, self._store.journal.version().number
        if current - self._collected < keep:
            return
        self._collected = current
        try:
            self._store.gc(keep=keep)
        except StoreError as error:
            logger.error("old versions could not be collected: %s", error)

    def _show_progress(self, done: int) -> None:
        now = time.monotonic()
        if now - self._reported_at >= TELL:
            self._reported_at = now
            self._tell(done=done)

    @contextmanager
    def _working(self, work: _Work) -> Any:
        """What runs within the block is `work`, and its time is none of the work around it."""
        self._works.append(work)
        try:
            yield
        finally:
            self._works.pop()
            spent = time.thread_time() - work.started_at
            for around in self._works:
                around.aside += spent - work.aside

    def _between_steps(self) -> None:
        """Ends the work that is being done if it must end, and does what may not wait for its end."""
        self._leave_if_told()
        if self.is_lost:
            raise StoreError(f"{LOST} meanwhile, and is opened again; try again later")
        work = self._works[-1]
        work.check()
        if work.kind != DELETE:
            self._run_next(self._deletes)
        if work.kind == EDIT and time.thread_time() >= self._preview_due:
            self._run_next(self._previews)

    def _run_next(self, jobs: deque[_Job]) -> bool:
        """Runs the next of the jobs. Returns False if there is none."""
        with self._news:
            if not jobs:
                return False
            job = jobs.popleft()
        if not job.is_wanted():
            return True
        start = time.thread_time()

        def run() -> dict[str, Any]:
            with torch.enable_grad(), self._model.disabled():  # whatever the work around it has set
                if job.name == PREVIEW:
                    return self.preview(**job.arguments, is_wanted=job.is_wanted)
                return self._delete_rewriting(**job.arguments)

        _run_command(job.name, run, job.answer)
        if job.name == PREVIEW:
            now = time.thread_time()
            self._preview_due = now + (now - start)
        return True

    def preview(
        self, edit: Mapping[str, Any], prompts: Sequence[str], is_wanted: Callable[[], bool] = lambda: True
    ) -> dict[str, Any]:
        """Answers to an edit's own prompt and to others, before and after the edit, which is not stored. It ends
        when `is_wanted` says no. Raises EditError as `Trainer.edit` does, LimitError if it takes too long."""
        model, new = self._model, Edit.from_dict(edit)
        check_size(new, model.encoder, self._settings)
        erasures = self._erasures
        before = within(self._store.read().state, new.namespace)
        prompt_ids = [model.encoder.own_prompt(new), *prompts]

        def goes_on() -> None:
            if not is_wanted():
                raise StoreError("the client of this preview left")
            if self._erasures != erasures:
                raise StoreError("an edit was erased meanwhile; ask for the preview again")

        with self._working(_Work(PREVIEW, self._settings.preview_seconds, goes_on)):
            with model.evaluating(), checking(self._between_steps):
                after, report = model.trainer.edit(before, [new], serve=model.serving)
                [outcome] = model.trainer.with_before(before, [new], report.outcomes, serve=model.serving)
            answers: list[dict[str, str]] = []
            for start in range(0, len(prompt_ids), ASKED_AT_ONCE):
                self._between_steps()
                texts = []
                for state in (before, after):
                    with model.serving(state):
                        texts.append(model.ask(prompt_ids[start : start + ASKED_AT_ONCE]))
                pairs = zip(*texts, strict=True)
                answers += [{"prompt": o.prompt, "before": o.text, "after": n.text} for o, n in pairs]
            goes_on()
        return {"outcome": asdict(outcome), "replaced": list(report.replaced), "answers": answers}

    def _delete_rewriting(
        self, edit_ids: Sequence[str], author: str | None, reason: str | None, *, expired: bool = False
    ) -> dict[str, Any]:
        """Deletes edits that share slots with others, which are written anew without them."""
        model = self._model
        with self._working(_Work(DELETE, float("inf"), lambda: None)):
            while True:
                before = self._store.read()
                live = [edit_id for edit_id in edit_ids if edit_id in before.tickets]
                remaining = forget_edits(model, before.state, live, self._between_steps) if live else before.state
                with self._changing:
                    if self._store.read().version == before.version:
                        forget = partial(_unchanged, remaining)
                        return self._deleted(edit_ids, author, reason, forget=forget, expired=expired).to_dict()

    # -- the thread of commands ---------------------------------------------------------------------

    def do(
        self, name: str, arguments: Mapping[str, Any], answer: Answer, is_wanted: Callable[[], bool] = lambda: True
    ) -> bool:
        """Runs a command, or queues it if it needs the model; see `_run_command`. Returns whether it waits. wanted:
        whether anybody still waits for the answer."""
        commands: dict[str, Callable[..., Version | Erasure]] = {
            DELETE: self._deleted,
            "rollback": self._rolled_back,
            "erase": self._erased,
        }

        def run() -> dict[str, Any] | None:
            if name != PREVIEW and not (name == DELETE and self._shares(arguments["edit_ids"])):
                return commands[name](**arguments).to_dict()
            with self._news:
                if self._prepared is None:
                    raise StoreError(PREPARING)
                (self._previews if name == PREVIEW else self._deletes).append(_Job(name, arguments, answer, is_wanted))
                self._news.notify_all()
            return None

        return not _run_command(name, run, answer)

    def attend(self) -> None:
        """Takes up what other replicas ask for, ends what they withdrew and what has expired. Raises StoreError."""
        while command := self._store.commands.claim():
            self._from_replicas.add(command.id)
            is_wanted = partial(self._from_replicas.__contains__, command.id)
            self.do(command.name, command.arguments, partial(self._reply, command.id), is_wanted)
        if self._from_replicas:
            self._from_replicas &= self._store.commands.claimed()
        late = [t.edit.id for t in self._store.expired() if t.edit.id not in self._expiring]
        if late:
            self._expiring.update(late)
            arguments = {"edit_ids": late, "author": None, "reason": "it is not valid now", "expired": True}
            self.do("delete", arguments, partial(self._note_expiry, late))
        elif self._not_expired and not self._expiring:
            self._note_expiry([], {})

    def _note_expiry(self, edit_ids: Sequence[str], result: dict[str, Any]) -> None:
        """Says once why edits could not be deleted whose time is over, however often that is tried."""
        self._expiring.difference_update(edit_ids)
        problem = result.get("problem", "")
        if problem == self._not_expired:
            return
        self._not_expired = problem
        self._tell(why=problem)
        if problem:
            fields = {"edits": listed(edit_ids)}
            logger.error("edits whose time is over are still served; GET /v1/status says why", extra={"fields": fields})

    def _reply(self, command: str, result: dict[str, Any]) -> None:
        self._from_replicas.discard(command)
        try:
            self._store.commands.answer(command, result)
        except StoreError as error:
            logger.error("the answer to another replica could not be stored: %s", error)

    def leave(self) -> None:
        """Has `work` end at its next step; what is in training is queued again at once."""
        self._leaving.set()
        with self._news:
            self._news.notify_all()
        try:
            self._queue_again(LEAVING)
        except StoreError as error:  # the next writer does it
            logger.error("what was in training could not be queued again: %s", error)

    def _leave_if_told(self) -> None:
        if self._leaving.is_set():
            raise Leave

    def _queue_again(self, why: str) -> None:
        with self._changing:
            if self._training:
                self._store.requeue(list(self._training.values()), why=why)
            self._training = {}

    def _shares(self, edit_ids: Collection[str]) -> bool:
        """Whether live edits share slots with others, so that a delete needs the model."""
        before = self._store.read()
        return bool(before.state.sharing([edit_id for edit_id in edit_ids if edit_id in before.tickets]))

    def _deleted(
        self,
        edit_ids: Sequence[str],
        author: str | None,
        reason: str | None,
        *,
        forget: Forget | None = None,
        expired: bool = False,
    ) -> Version:
        with self._changing:
            before = self._store.read().version
            version = self._store.delete(edit_ids, forget=forget, author=author, reason=reason, expired=expired)
            for edit_id in edit_ids:
                self._training.pop(edit_id, None)
            self._stale = self._stale or (forget is not None and version.number != before)
            return version

    def _rolled_back(self, version: int, author: str | None, reason: str | None) -> Version:
        with self._changing:
            made = self._store.rollback(version, author=author, reason=reason)
            self._stale = True
            return made

    def _erased(self, edit_ids: Sequence[str], author: str | None, reason: str | None, with_author: bool) -> Erasure:
        with self._changing:
            self._stale = True
            self._erasures += 1
            return self._store.erase(edit_ids, author=author, reason=reason, with_author=with_author)


def _following(state: MemoryState, before: Snapshot, current: Snapshot) -> MemoryState:
    """What was trained on `before`, on `current`: without the edits that were deleted in between.

    Raises _Restart if anything else happened, or a deleted edit left its trace in a slot.
    """
    if before.version == current.version:
        return state
    removed = before.tickets.keys() - current.tickets.keys()
    if current.tickets.items() - before.tickets.items() or before.state.sharing(removed) or state.sharing(removed):
        raise _Restart
    return state.without(removed)


def _named(error: Exception, settings: Settings) -> Exception:
    """An error of a library as one that says what to do, where it is known what it means."""
    no_memory = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
    if no_memory or "can't allocate memory" in str(error):
        return LimitError(f"it took more memory than edit_memory={settings.edit_memory:g} GiB allows, or than there is")
    return error


def _unchanged(state: MemoryState, *_: object) -> MemoryState:
    return state


def _run_command(name: str, run: Callable[[], dict[str, Any] | None], answer: Answer) -> bool:
    """Runs a command, and answers it with what was `done`, or the `kind` of an error and the `problem`. Returns False
    if it was only queued, and so is not answered."""
    try:
        done = run()
    except Leave:
        answer(INTERRUPTED)
        raise
    except Exception as error:
        if not isinstance(error, WiseError):
            logger.error("the command %s failed", name, exc_info=error)
        kind = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in KINDS), "StoreError")
        answer({"kind": kind, "problem": str(error)})
        return True
    if done is not None:
        answer({"done": done})
    return done is not None
