"""The trainer: it checks edits, assigns them to slots, writes the slots, and verifies every edit by generation.

It builds a new `MemoryState` and never changes the one that is served. With the new state in place it asks the model,
and drops every edit that does not keep what the settings require of it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch

from wise.config import WiseConfig
from wise.edits import Edit, check_one_namespace, check_unique
from wise.errors import EditError
from wise.memory.key_space import Space
from wise.memory.state import MemoryState
from wise.training.conflicts import conflicts
from wise.training.encoding import Encoder
from wise.training.generation import greedy
from wise.training.report import FAILED, PARTIAL, SUPERSEDED, VERIFIED, Conflict, EditReport, Outcome
from wise.training.splice import SplicedModel
from wise.training.verification import Serve, Share, Verdict, Verifier, WordingVerifier
from wise.training.writers.base import EditsDone, FitResult, Sharding, SlotTask, Writer, silent

EDITS_AT_ONCE = 64
"""Edits whose slots are written in one batch."""
ASKED_BEFORE, BEFORE_TOKENS, LONGEST_TEXT = 32, 16, 300
"""Texts of an edit that are asked without it, the tokens of an answer, and the characters of a text that is kept."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trainer:
    """Edits one base model. Holds no memory of its own: `edit` maps one state to the next."""

    spliced: SplicedModel
    encoder: Encoder
    key_space: Space
    """The space of new keys."""
    verifier: Verifier
    writer: Writer
    sharding: Sharding
    config: WiseConfig
    dtype: torch.dtype
    """Of the model."""

    def edit(
        self,
        state: MemoryState,
        edits: Sequence[Edit],
        *,
        serve: Serve,
        replacing: bool = False,
        progress: EditsDone = silent,
    ) -> tuple[MemoryState, EditReport]:
        """Writes `edits` after those of `state`; returns the new state and what became of each edit.

        A live edit of the same prompt is replaced, and nothing of it is left. With `replacing`, so is one of its id.
        Within `checking` it can be ended between two steps of fitting and between two generated tokens.

        Raises EditError, with nothing changed, for duplicate ids, ids that are live already unless `replacing`, and
        edits that do not fit the context.
        """
        self.validate(state, edits, replacing=replacing)
        start, start_cpu = time.perf_counter(), time.process_time()
        latest = {edit.prompt: edit for edit in edits}
        fresh = [edit for edit in edits if latest[edit.prompt] is edit]
        ids, prompts = {edit.id for edit in fresh}, latest.keys()
        alike = [other for other in state.edits if other.prompt in prompts or other.id in ids]
        replaces = {edit.id: [o.id for o in alike if edit.id == o.id or edit.prompt == o.prompt] for edit in fresh}
        outcomes: dict[str, Outcome] = {}
        while True:
            replaced = tuple(dict.fromkeys(i for edit in fresh for i in replaces[edit.id]))
            final, verdicts, superseded_by_conflict = self._attempt_and_retry(state, replaced, fresh, serve, progress)
            outcomes |= verdicts
            # An edit that fails does not take the place of one that holds: all are written once more, without it.
            failed_replacements = [e for e in fresh if replaces[e.id] and verdicts[e.id].status == FAILED]
            if not failed_replacements:
                break
            fresh = [edit for edit in fresh if edit not in failed_replacements]
        accounted_for = {*final.edit_ids, *replaced, *(conflict.superseded for conflict in superseded_by_conflict)}
        dropped = tuple(i for i in state.edit_ids if i not in accounted_for)
        never_written = Outcome(id="", status=SUPERSEDED, answer="", steps=0, loss=0.0, milliseconds=0.0)
        return final, EditReport(
            outcomes=tuple(outcomes.get(edit.id, replace(never_written, id=edit.id)) for edit in edits),
            replaced=replaced,
            dropped=dropped,
            seconds=time.perf_counter() - start,
            cpu_seconds=time.process_time() - start_cpu,
            conflicts=superseded_by_conflict,
        )

    def with_before(
        self, state: MemoryState, edits: Sequence[Edit], outcomes: Sequence[Outcome], *, serve: Serve
    ) -> list[Outcome]:
        """Outcomes of `edits`, with what `state`, the one before them, answers to all that `holds` names.

        An edit has at most `ASKED_BEFORE` such texts, of at most `LONGEST_TEXT` characters.
        """
        by_id = {edit.id: edit for edit in edits}
        labels = [list(outcome.holds)[:ASKED_BEFORE] for outcome in outcomes]
        prompts = [
            p
            for outcome, own in zip(outcomes, labels, strict=True)
            if own
            for p in self.verifier.prompts(by_id[outcome.id], own)
        ]
        if not prompts:
            return list(outcomes)
        with serve(state) as model:
            ids = [ids for ids, _ in prompts]
            out = greedy(model, ids, stops=self.encoder.stops, max_new_tokens=BEFORE_TOKENS)
        texts = iter([self.encoder.answer(ids, chat=chat) for ids, (_, chat) in zip(out, prompts, strict=True)])
        return [
            replace(
                outcome,
                said={label: text[:LONGEST_TEXT] for label, text in outcome.said.items()},
                before={label: next(texts)[:LONGEST_TEXT] for label in own},
            )
            for outcome, own in zip(outcomes, labels, strict=True)
        ]

    def delete(
        self, state: MemoryState, edit_ids: Collection[str], *, serve: Serve
    ) -> tuple[MemoryState, tuple[str, ...]]:
        """`state` without these edits and without others that do not verify any more; the ids of those others."""
        final, _ = self._keep_verified(self._without(state, edit_ids), serve)
        accounted_for = {*final.edit_ids, *edit_ids}
        return final, tuple(i for i in state.edit_ids if i not in accounted_for)

    def _without(self, state: MemoryState, edit_ids: Collection[str]) -> MemoryState:
        """`state` without these edits. A slot that they shared with others is written anew, from zero.

        Slots are written one by one, so that each depends on its own edits and number alone. An edit that cannot be
        fitted again is dropped too.
        """
        sharing = set(state.sharing(edit_ids))
        left = state.without(edit_ids)
        if not sharing:
            return left
        by_id = left.by_id
        for slot in left.slots:
            if not sharing.isdisjoint(slot.edit_ids):
                task = SlotTask(id=slot.id, edits=tuple(by_id[i] for i in slot.edit_ids))
                left, results = self._write(left, [task], silent, 0)
                sharing -= {i for i, written in results.items() if written.fitted}
        return left.without(sharing)

    def _attempt_and_retry(
        self, state: MemoryState, replaced: Collection[str], fresh: Sequence[Edit], serve: Serve, progress: EditsDone
    ) -> tuple[MemoryState, dict[str, Outcome], tuple[Conflict, ...]]:
        """`_attempt`, then with greater effort for edits that failed. A retry that drops another edit is discarded."""
        final, outcomes, superseded_by_conflict = self._attempt(state, replaced, fresh, serve, progress)
        for effort in range(1, self.writer.efforts):
            failed = [edit for edit in fresh if outcomes[edit.id].status == FAILED]
            if not failed:
                break
            retried, verdicts, new_conflicts = self._attempt(final, (), failed, serve, silent, effort, fresh)
            superseded_ids = {conflict.superseded for conflict in new_conflicts}
            kept_all = {*final.edit_ids} <= {*retried.edit_ids, *superseded_ids}
            if kept_all:
                final, superseded_by_conflict = retried, (*superseded_by_conflict, *new_conflicts)
                superseded_now = superseded_ids & outcomes.keys() - verdicts.keys()
                outcomes |= {i: replace(outcomes[i], status=SUPERSEDED) for i in superseded_now}
            outcomes |= {i: _retried(outcomes[i], outcome, kept_all) for i, outcome in verdicts.items()}
        return final, outcomes, superseded_by_conflict

    def _attempt(
        self,
        state: MemoryState,
        replaced: Collection[str],
        fresh: Sequence[Edit],
        serve: Serve,
        progress: EditsDone,
        effort: int = 0,
        stream: Sequence[Edit] = (),
    ) -> tuple[MemoryState, dict[str, Outcome], tuple[Conflict, ...]]:
        """Writes `fresh` into `state` without `replaced`. Returns the state of the edits that verified, the outcome of
        each edit, and the edits that were superseded in conflicts.

        stream: all edits of the call, if some of them are in `state` already. A retried edit keeps its position in the
        stream, since of contradicting edits the last one stays.
        """
        if not fresh:
            return state, {}, ()
        kept = self._without(state, replaced)
        new = replace(kept, key_space=self.key_space)
        results: dict[str, FitResult] = {}
        seconds: dict[str, float] = {}
        for tasks in self._batches(kept, fresh):
            started = time.perf_counter()
            report_progress = _first_half(progress, len(results), len(fresh))
            new, written = self._write(new, tasks, report_progress, effort)
            results |= written
            seconds |= dict.fromkeys(written, (time.perf_counter() - started) / len(written))
            report_progress(len(written))
        unfitted = {edit.id for edit in fresh if not results[edit.id].fitted}
        place = {edit.id: n for n, edit in enumerate(stream or fresh)}
        before = [edit for edit in kept.edits if edit.id not in place]
        of_this_call = [edit for edit in kept.edits if edit.id in place]
        ordered = sorted((*of_this_call, *fresh), key=lambda edit: place[edit.id])
        written_all = replace(new, edits=(*before, *ordered)).without(unfitted)
        asked = _second_half(progress, len(fresh))
        final, answers, superseded_by_conflict = self._resolve_conflicts(written_all, place.keys(), serve, asked)
        asked(1.0)
        live, superseded_ids = set(final.edit_ids), {conflict.superseded for conflict in superseded_by_conflict}
        answered_ids = live | answers.keys()
        answers |= self.verifier.ask(final, [edit for edit in fresh if edit.id not in answered_ids], serve)
        served = {edit.id: VERIFIED if answers[edit.id].right else PARTIAL for edit in fresh}
        status = {i: served[i] if i in live else SUPERSEDED if i in superseded_ids else FAILED for i in served}
        outcomes = {e.id: _outcome(e, status[e.id], results[e.id], answers[e.id], seconds[e.id]) for e in fresh}
        return final, outcomes, superseded_by_conflict

    def validate(self, state: MemoryState, edits: Sequence[Edit], *, replacing: bool = False) -> None:
        """Raises EditError for edits that cannot be applied to `state`, as `edit` does."""
        check_unique(edits)
        check_one_namespace([*state.edits, *edits])
        live = set() if replacing else set(state.edit_ids)
        for edit in edits:
            if edit.id in live:
                known = f"edit {edit.id!r} is live already"
                raise EditError(f"field 'id': {known}; leave the edit out, or give it another id")
            self.encoder.validate(edit)

    def _batches(self, state: MemoryState, edits: Sequence[Edit]) -> list[list[SlotTask]]:
        batches: list[list[SlotTask]] = []
        for task in self.sharding.tasks(state, edits):
            if not batches or sum(len(t.edits) for t in batches[-1]) + len(task.edits) > EDITS_AT_ONCE:
                batches.append([])
            batches[-1].append(task)
        return batches

    def _write(
        self, state: MemoryState, tasks: list[SlotTask], progress: EditsDone, effort: int
    ) -> tuple[MemoryState, dict[str, FitResult]]:
        """Writes the slots of `tasks` into `state`, with the keys and scores of the edits they hold."""
        slots, keys = list(state.slots), dict(state.keys)
        results: dict[str, FitResult] = {}
        for task, (slot, outcomes) in zip(tasks, self.writer.write(tasks, progress, effort), strict=True):
            scores = {}
            for edit, outcome in zip(task.edits, outcomes, strict=True):
                keys[edit.id], scores[edit.id] = outcome.keys, outcome.score
                results[edit.id] = outcome
            slots[slot.id : slot.id + 1] = [slot.with_scores(scores)]
        return replace(state, slots=tuple(slots), keys=keys), results

    def _resolve_conflicts(
        self, state: MemoryState, fresh: Collection[str], serve: Serve, progress: Share
    ) -> tuple[MemoryState, dict[str, Verdict], tuple[Conflict, ...]]:
        """`_keep_verified`. Of contradicting edits the last one that verifies stays."""
        failed: set[str] = set()
        verdicts: dict[str, Verdict] = {}
        while True:
            standing = state.without(failed)
            superseded = conflicts(standing, fresh)
            without_superseded = standing.without({each.superseded for each in superseded})
            final, answers = self._keep_verified(without_superseded, serve, fresh, progress)
            verdicts |= answers
            failed_winners = {each.by for each in superseded} - set(final.edit_ids)
            if not failed_winners:
                return final, verdicts, superseded
            failed |= failed_winners

    def _keep_verified(
        self,
        state: MemoryState,
        serve: Serve,
        fresh: Collection[str] | None = None,
        progress: Share = lambda share: None,
    ) -> tuple[MemoryState, dict[str, Verdict]]:
        """`state` without the edits that do not verify, and the verdicts on those that were asked.

        fresh: the new edits; None for all. If every edit has its own slot, the new ones are asked first, and then the
        edits that they may have changed. If slots are shared, all edits are asked, and again after some were dropped:
        their keys and thresholds are gone then, and other answers may change.
        """
        if fresh is not None and isinstance(self.verifier, WordingVerifier):
            state, verdicts = self._verify(state, fresh, serve, progress)
            ids = {*fresh} & {*state.edit_ids}
            state, others = self._verify(state, self.verifier.touched(state, ids), serve)
            return state, verdicts | others
        verdicts = {}
        while True:
            count = len(state.edits)
            state, new_verdicts = self._verify(state, state.edit_ids, serve, progress)
            verdicts |= new_verdicts
            if len(state.edits) == count:
                return state, verdicts

    def _verify(
        self, state: MemoryState, edit_ids: Collection[str], serve: Serve, progress: Share = lambda share: None
    ) -> tuple[MemoryState, dict[str, Verdict]]:
        edits = [edit for edit in state.edits if edit.id in edit_ids] if edit_ids else []
        verdicts = self.verifier.ask(state, edits, serve, progress) if edits else {}
        return state.without([e.id for e in edits if not verdicts[e.id].keeps(self.config.require)]), verdicts


def _first_half(progress: EditsDone, before: int, total: int) -> EditsDone:
    """Reports progress while edits are fitted, as the first half of the work."""
    return lambda fitted: progress(min(before + fitted, total) // 2)


def _second_half(progress: EditsDone, total: int) -> Share:
    return lambda share: progress(total // 2 + int(share * (total - total // 2)))


def _outcome(edit: Edit, status: str, written: FitResult, verdict: Verdict, seconds: float) -> Outcome:
    return Outcome(
        id=edit.id,
        status=status,
        answer=verdict.answer,
        holds=verdict.results,
        said=verdict.said,
        also_answers=verdict.also_answers,
        steps=written.steps,
        loss=written.loss,
        milliseconds=1000 * seconds,
        tried=(written.tried,) if written.tried else (),
    )


def _retried(before: Outcome, now: Outcome, is_served: bool) -> Outcome:
    """The outcome of an edit that was tried again; is_served: the retry is what is served."""
    return replace(
        now if is_served else before,
        steps=before.steps + now.steps,
        milliseconds=before.milliseconds + now.milliseconds,
        tried=(*before.tried, *now.tried),
    )
