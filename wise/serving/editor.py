"""The editor of a store: its one writer, which trains what is queued and runs commands.

Two threads call it, so that no command waits for training:

* **The thread of the model** trains, and runs all other work that needs the model: previews, and deletes of edits that
  share a slot with others (`merge`, `retrieve`). Between two steps of training it checks whether it must end, and runs
  the jobs that wait for the model: a delete at once, a preview as soon as training has had as much time as the previews
  before it. So previews take at most half of the time, and wait for one another but not for the end of a long edit.
* **The thread of commands** deletes, erases and rolls back in the store, without the model, and withdraws edits from
  training. It also runs commands of other replicas, until they withdraw them, and deletes expired edits.

Training begins at one version and ends with a commit, maybe at a later one. If edits were only deleted in between,
which leaves no trace in others' slots, the new edits are committed without them, as if the deletes had come a moment
later. In every other case the edits are trained again, from the later version. If an edit is withdrawn during training,
the other edits of its batch are trained again. After an erasure all edits are trained again too, and running previews
fail, so that nothing that is written repeats erased text.

An edit fails, with the reason, if it is larger than the settings allow, takes too much CPU time or memory, or was in
training when an editor ended twice. If a batch fails, each of its edits is trained alone, so that only the cause fails.
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
"""The answer to a command whose writer ended while it ran."""
PREPARING = "the editor is still preparing the model; try again later"
"""The problem of a command that needs the model before it is ready."""
LEAVING = "the service ended"
"""Why a ticket was queued again when an editor ended in order."""
LOST = "the store was lost"
"""Why a ticket was queued again when an editor lost its store, and opened it again."""
ENDINGS = 2
"""An edit that was in training when so many editors crashed is not trained any more."""
PROMPTS_AT_ONCE = 8
"""Prompts of a preview that are answered between two checks for waiting jobs."""
REPORT_INTERVAL = 0.5
"""Seconds between two reports of progress."""

EDIT, PREVIEW, DELETE = "edit", "preview", "delete"
"""Work that may need the model."""

Answer = Callable[[dict[str, Any]], None]
"""Called with the answer to a command, in either thread."""
Tell = Callable[..., None]
"""Called with the changed fields of the editor's status, by name."""


class Leave(Exception):
    """The editor must end."""


class LimitError(EditError):
    """Something takes longer, or more memory, than the settings allow."""


class _Restart(Exception):
    """The batch must be trained again: from another version, or without an edit that was withdrawn."""


class _Job(NamedTuple):
    """A command that waits for the model."""

    name: str
    arguments: Mapping[str, Any]
    answer: Answer
    is_awaited: Callable[[], bool]
    """Whether a client still waits for the answer."""


@dataclass(eq=False)
class _Work:
    """Work of the thread of the model, and the CPU seconds that it may use. `goes_on` raises if the work must end."""

    kind: str
    seconds: float
    goes_on: Callable[[], None]
    started_at: float = field(default_factory=time.thread_time)
    aside: float = 0.0
    """Seconds of other work that ran in between."""

    def check(self) -> None:
        self.goes_on()
        if time.thread_time() - self.started_at - self.aside > self.seconds:
            setting = f"{self.kind}_seconds={self.seconds:g}"
            raise LimitError(f"it took more CPU time than {setting} s; give fewer or shorter texts, or allow more")


class Editor:
    """Edits `store`, which was opened as its writer. The head of this file says which thread may call which method."""

    def __init__(self, store: Store, settings: Settings, tell: Tell = lambda **_: None) -> None:
        store.commands.abandon(INTERRUPTED)
        self._store, self._settings, self._tell = store, settings, tell
        self._prepared: WiseModel | None = None
        self._changing = threading.RLock()
        """Held while the store is changed. Guards `_training` and `_stale`."""
        self._training: dict[str, Ticket] = {}
        """By edit id, tickets that are claimed and not yet committed, failed or withdrawn."""
        self._stale = False
        """Whether the current training began at a version on which its result cannot be committed any more."""
        self._erasures = 0
        oldest = store.journal.tickets(status=QUEUED, limit=settings.edit_batch or EDITS_AT_ONCE)
        self._careful = any(map(self._endings, oldest))
        """Whether edits are trained one by one, because one of them may have crashed an editor."""
        self._news = threading.Condition()
        """Guards the jobs."""
        self._delete_jobs: deque[_Job] = deque()
        self._preview_jobs: deque[_Job] = deque()
        self._remote_commands: set[str] = set()
        """Ids of the commands that other replicas wait for."""
        self._expiring: set[str] = set()
        self._not_expired = ""
        """Why expired edits could not be deleted."""
        self._collected = 0
        """The current version when old ones were last collected."""
        self._works: list[_Work] = []
        """The work in progress, the innermost last."""
        self._preview_due = 0.0
        """CPU time of this thread from which on a preview may interrupt training."""
        self._reported_at = 0.0
        self._leaving = threading.Event()

    # -- the thread of the model --------------------------------------------------------------------

    def prepare(self, model: WiseModel) -> None:
        """Edits with this model from now on; it serves no requests. Raises StoreError if it does not fit the store."""
        make_ready(
            model,
            self._store.read(),
            self._store.backend.place,
            allow_precision=self._settings.allow_precision,
            stage=lambda name: self._tell(stage=name),
        )
        self._prepared = model

    @property
    def has_lost_store(self) -> bool:
        """Whether the store must be opened again; this editor can then change nothing any more."""
        return self._store.backend.is_lost

    def give_up(self) -> None:
        """Answers the jobs that wait for the model, and refuses further jobs that need it."""
        with self._news:
            self._prepared = None
            waiting = [*self._delete_jobs, *self._preview_jobs]
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
            if not (self._delete_jobs or self._preview_jobs or self._leaving.is_set()):
                self._news.wait(seconds)

    def work(self) -> bool:
        """Runs waiting jobs, and trains and commits the oldest queued edits. Returns False if there was nothing to do.
        Raises StoreError if the store refuses the result, and Leave after `leave`; the edits are then queued again."""
        try:
            self._leave_if_requested()
            ran = self._run_next(self._delete_jobs)
            self._collect()
            self._queue_again("the store did not take it")  # edits that could not be queued again before
            tickets = self._claim()
            if not tickets:
                return self._run_next(self._preview_jobs) or ran
            remaining = [ticket for ticket in tickets if ticket.edit.id in self._training]
            if remaining:
                self._train_all(remaining)
        except (StoreError, Leave) as error:
            self._queue_again(str(error) or LEAVING)
            raise
        return True

    def _claim(self) -> list[Ticket]:
        with self._changing:
            self._leave_if_requested()  # tickets that are claimed after `leave` would not be queued again
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
        """How many editors have crashed while it was in training."""
        events = self._store.journal.events(ticket=ticket.number)
        return sum(event.kind == QUEUED and event.detail.get("why") == ENDED for event in events)

    def _train_all(self, tickets: Sequence[Ticket]) -> None:
        """Trains edits together; if that fails, each alone, so that only the cause fails."""
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
            failure = _with_advice(error, self._settings)
        remaining = [ticket for ticket in tickets if ticket.edit.id in self._training]
        trim_heap()
        if len(remaining) == 1 == len(tickets):
            self._fail(remaining[0], f"{type(failure).__name__}: {failure}"[:500], error_without_texts(failure))
            return
        for ticket in remaining:
            self._train_all([ticket])

    def _fail(self, ticket: Ticket, why: str, logged: str) -> None:
        """why: for the store, which can erase it. logged: the same without texts of the edit."""
        with self._changing:
            if ticket.edit.id in self._training:
                self._store.fail([ticket], detail={"status": FAILED, "why": why})
                del self._training[ticket.edit.id]  # only now: if the store refuses it, the edit is queued again
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
                base=current.base or self._model.fingerprint(),  # a store keeps its first precision
                outcomes={outcome.id: asdict(outcome) for outcome in outcomes},
                author=", ".join(sorted({edit.author for edit in edits if edit.author})) or None,
            )
            for edit in edits:
                del self._training[edit.id]
        spent = round(time.monotonic() - start, 3)
        logger.info("committed", extra={"fields": {"version": version.number, "seconds": spent}})
        trim_heap()

    def _collect(self) -> None:
        """Collects old versions after every `keep_versions` new versions."""
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
        if now - self._reported_at >= REPORT_INTERVAL:
            self._reported_at = now
            self._tell(done=done)

    @contextmanager
    def _working(self, work: _Work) -> Any:
        """The block runs `work`; its time does not count for the work around it."""
        self._works.append(work)
        try:
            yield
        finally:
            self._works.pop()
            spent = time.thread_time() - work.started_at
            for around in self._works:
                around.aside += spent - work.aside

    def _between_steps(self) -> None:
        """Ends the current work if it must end, and runs jobs that cannot wait for its end."""
        self._leave_if_requested()
        if self.has_lost_store:
            raise StoreError(f"{LOST} meanwhile, and is opened again; try again later")
        work = self._works[-1]
        work.check()
        if work.kind != DELETE:
            self._run_next(self._delete_jobs)
        if work.kind == EDIT and time.thread_time() >= self._preview_due:
            self._run_next(self._preview_jobs)

    def _run_next(self, jobs: deque[_Job]) -> bool:
        """Runs the next of the jobs. Returns False if there is none."""
        with self._news:
            if not jobs:
                return False
            job = jobs.popleft()
        if not job.is_awaited():
            return True
        start = time.thread_time()

        def run() -> dict[str, Any]:
            with torch.enable_grad(), self._model.disabled():  # independent of the work around it
                if job.name == PREVIEW:
                    return self.preview(**job.arguments, is_awaited=job.is_awaited)
                return self._delete_rewriting(**job.arguments)

        _run_and_answer(job.name, run, job.answer)
        if job.name == PREVIEW:
            now = time.thread_time()
            self._preview_due = now + (now - start)
        return True

    def preview(
        self, edit: Mapping[str, Any], prompts: Sequence[str], is_awaited: Callable[[], bool] = lambda: True
    ) -> dict[str, Any]:
        """Answers to an edit's own prompt and to others, before and after the edit, which is not stored.

        Raises EditError as `Trainer.edit` does, LimitError if it takes too long, StoreError if it is not awaited any
        more."""
        model, new = self._model, Edit.from_dict(edit)
        check_size(new, model.encoder, self._settings)
        erasures = self._erasures
        before = within(self._store.read().state, new.namespace)
        questions = [model.encoder.own_prompt(new), *prompts]

        def goes_on() -> None:
            if not is_awaited():
                raise StoreError("nobody waits for this preview any more")
            if self._erasures != erasures:
                raise StoreError("an edit was erased meanwhile; ask for the preview again")

        with self._working(_Work(PREVIEW, self._settings.preview_seconds, goes_on)):
            with model.evaluating(), checking(self._between_steps):
                after, report = model.trainer.edit(before, [new], serve=model.serving)
                [outcome] = model.trainer.with_before(before, [new], report.outcomes, serve=model.serving)
            answers: list[dict[str, str]] = []
            for start in range(0, len(questions), PROMPTS_AT_ONCE):
                self._between_steps()
                answer_pair = []
                for state in (before, after):
                    with model.serving(state):
                        answer_pair.append(model.ask(questions[start : start + PROMPTS_AT_ONCE]))
                answers += [
                    {"prompt": answer.prompt, "before": answer.text, "after": edited_answer.text}
                    for answer, edited_answer in zip(*answer_pair, strict=True)
                ]
            goes_on()
        return {"outcome": asdict(outcome), "replaced": list(report.replaced), "answers": answers}

    def _delete_rewriting(
        self, edit_ids: Sequence[str], author: str | None, reason: str | None, *, expired: bool = False
    ) -> dict[str, Any]:
        """Deletes edits that share slots with others; the slots are rewritten without them."""
        model = self._model
        with self._working(_Work(DELETE, float("inf"), lambda: None)):
            while True:
                before = self._store.read()
                live = [edit_id for edit_id in edit_ids if edit_id in before.tickets]
                after = forget_edits(model, before.state, live, self._between_steps) if live else before.state
                with self._changing:
                    if self._store.read().version == before.version:
                        forget = partial(_return_state, after)
                        return self._delete(edit_ids, author, reason, forget=forget, expired=expired).to_dict()

    # -- the thread of commands ---------------------------------------------------------------------

    def do(
        self, name: str, arguments: Mapping[str, Any], answer: Answer, is_awaited: Callable[[], bool] = lambda: True
    ) -> bool:
        """Runs a command, or queues it if it needs the model; see `_run_and_answer`. Returns whether it was queued.
        is_awaited: whether a client still waits for the answer."""
        commands: dict[str, Callable[..., Version | Erasure]] = {
            DELETE: self._delete,
            "rollback": self._roll_back,
            "erase": self._erase,
        }

        def run() -> dict[str, Any] | None:
            if name != PREVIEW and not (name == DELETE and self._shares(arguments["edit_ids"])):
                return commands[name](**arguments).to_dict()
            with self._news:
                if self._prepared is None:
                    raise StoreError(PREPARING)
                jobs = self._preview_jobs if name == PREVIEW else self._delete_jobs
                jobs.append(_Job(name, arguments, answer, is_awaited))
                self._news.notify_all()
            return None

        return not _run_and_answer(name, run, answer)

    def attend(self) -> None:
        """Runs commands of other replicas, ends those that they withdrew, and deletes expired edits. Raises
        StoreError."""
        while command := self._store.commands.claim():
            self._remote_commands.add(command.id)
            is_awaited = partial(self._remote_commands.__contains__, command.id)
            self.do(command.name, command.arguments, partial(self._reply, command.id), is_awaited)
        if self._remote_commands:
            self._remote_commands &= self._store.commands.claimed()
        late = [t.edit.id for t in self._store.expired() if t.edit.id not in self._expiring]
        if late:
            self._expiring.update(late)
            arguments = {"edit_ids": late, "author": None, "reason": "it is not valid now", "expired": True}
            self.do("delete", arguments, partial(self._note_expiry, late))
        elif self._not_expired and not self._expiring:
            self._note_expiry([], {})

    def _note_expiry(self, edit_ids: Sequence[str], answer: dict[str, Any]) -> None:
        """Reports once why expired edits could not be deleted, however often that is tried."""
        self._expiring.difference_update(edit_ids)
        problem = answer.get("problem", "")
        if problem == self._not_expired:
            return
        self._not_expired = problem
        self._tell(why=problem)
        if problem:
            fields = {"edits": listed(edit_ids)}
            logger.error("edits whose time is over are still served; GET /v1/status says why", extra={"fields": fields})

    def _reply(self, command: str, answer: dict[str, Any]) -> None:
        self._remote_commands.discard(command)
        try:
            self._store.commands.answer(command, answer)
        except StoreError as error:
            logger.error("the answer to another replica could not be stored: %s", error)

    def leave(self) -> None:
        """Ends `work` at its next step; edits in training are queued again at once."""
        self._leaving.set()
        with self._news:
            self._news.notify_all()
        try:
            self._queue_again(LEAVING)
        except StoreError as error:  # the next writer does it
            logger.error("what was in training could not be queued again: %s", error)

    def _leave_if_requested(self) -> None:
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

    def _delete(
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

    def _roll_back(self, version: int, author: str | None, reason: str | None) -> Version:
        with self._changing:
            new_version = self._store.rollback(version, author=author, reason=reason)
            self._stale = True
            return new_version

    def _erase(self, edit_ids: Sequence[str], author: str | None, reason: str | None, with_author: bool) -> Erasure:
        with self._changing:
            self._stale = True
            self._erasures += 1
            return self._store.erase(edit_ids, author=author, reason=reason, with_author=with_author)


def _following(state: MemoryState, before: Snapshot, current: Snapshot) -> MemoryState:
    """The state that was trained on `before`, as a successor of `current`: without the edits that were deleted between.

    Raises _Restart if there was another change, or a deleted edit left a trace in a slot.
    """
    if before.version == current.version:
        return state
    deleted_ids = before.tickets.keys() - current.tickets.keys()
    has_new_tickets = bool(current.tickets.items() - before.tickets.items())
    if has_new_tickets or before.state.sharing(deleted_ids) or state.sharing(deleted_ids):
        raise _Restart
    return state.without(deleted_ids)


def _with_advice(error: Exception, settings: Settings) -> Exception:
    """The error; for memory errors of libraries a LimitError that says what to do."""
    no_memory = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
    if no_memory or "can't allocate memory" in str(error):
        return LimitError(f"it took more memory than edit_memory={settings.edit_memory:g} GiB allows, or than there is")
    return error


def _return_state(state: MemoryState, *_: object) -> MemoryState:
    return state


def _run_and_answer(name: str, run: Callable[[], dict[str, Any] | None], answer: Answer) -> bool:
    """Runs a command, and answers with its result as `done`, or with the `kind` of an error and the `problem`. Returns
    False if the command was only queued, and so is not answered yet."""
    try:
        result = run()
    except Leave:
        answer(INTERRUPTED)
        raise
    except Exception as error:
        if not isinstance(error, WiseError):
            logger.error("the command %s failed", name, exc_info=error)
        kind = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in KINDS), "StoreError")
        answer({"kind": kind, "problem": str(error)})
        return True
    if result is not None:
        answer({"done": result})
    return result is not None
