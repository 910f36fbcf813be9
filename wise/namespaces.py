"""A model and a store: whether they fit, and editing by namespace, as the service and the store's commands do it.

A store's edits are of one base, precision, mode and relation reader.

One state holds the edits of all namespaces. Edits of different namespaces share no slot and replace one another in no
case, so each namespace is served as if there were no other. `WiseModel` itself knows no namespaces.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from wise.edits import Edit
from wise.errors import ArtifactError, StoreError
from wise.memory.fingerprint import Fingerprint
from wise.memory.slot import Slot
from wise.memory.state import MemoryState
from wise.memory.store.versions import Snapshot
from wise.model import WiseModel
from wise.progress import Progress
from wise.training.generation import Check, checking
from wise.training.report import Outcome, PrecisionReport


def check_fits(model: WiseModel, snapshot: Snapshot, place: str, *, allow_precision: bool) -> bool:
    """As `check_base` and `check_settings` of this model."""
    same = check_base(model.fingerprint(), snapshot, place, allow_precision=allow_precision)
    check_settings(model, snapshot, place)
    return same


def check_base(base: Fingerprint, snapshot: Snapshot, place: str, *, allow_precision: bool = False) -> bool:
    """Whether a store's edits were made on this base in this precision; False for another one that is allowed.

    Raises StoreError if they were made on another base, or in another precision that is not allowed.
    """
    try:
        return snapshot.base is None or snapshot.base.check(base, allow_precision=allow_precision)
    except ArtifactError as error:
        raise StoreError(f"{place}: {error}; keep a store for each base") from error


def ask_again(
    model: WiseModel, snapshot: Snapshot, progress: Progress
) -> dict[str, PrecisionReport]:
    """By namespace, how many of a store's edits hold on this copy of their base.

    progress: called with a namespace, how many of its edits are done, and of how many.
    """
    if snapshot.base is None:
        return {}
    return {
        namespace: model.ask_again(part, snapshot.base, progress=partial(progress, namespace))
        for namespace, part in split(snapshot.state).items()
    }


def check_settings(model: WiseModel, snapshot: Snapshot, place: str) -> None:
    """Raises StoreError if a store's edits were made in another mode, or with another relation reader."""
    mode = model.wise_config.mode
    if snapshot.config is not None and snapshot.config.mode != mode:
        raise StoreError(f"{place} is of mode {snapshot.config.mode!r} and this serves {mode!r}: start it anew")
    if model.inputs is not None and snapshot.state.edits and snapshot.state.key_space != model.inputs.reader.key_space:
        reader = getattr(snapshot.state.key_space, "reader", "none")
        raise StoreError(
            f"{place}: the keys of its edits were made by the relation reader {reader!r} and this is "
            f"{model.inputs.reader.name!r}; give the file that they were made with as `relations`, or make them anew"
        )


def make_ready(
    model: WiseModel, snapshot: Snapshot, place: str, *, allow_precision: bool,
    stage: Callable[[str], None] = lambda name: None,
) -> None:
    """Prepares `model`, which serves no requests, to edit a store's state. Raises StoreError as `check_fits` does.

    stage: called with the name of each stage that takes long, as it begins.
    """
    stage("comparing the model with the store's")
    check_fits(model, snapshot, place, allow_precision=allow_precision)
    stage("learning how the model begins and ends its answers")
    _ = model.encoder
    stage("measuring the model")
    model.state = snapshot.state  # its space is the one that new keys are compared in
    model.prepare()


def edited(
    model: WiseModel, state: MemoryState, edits: Sequence[Edit], *,
    progress: Callable[[int], None] = lambda done: None, check: Check | None = None,
) -> tuple[MemoryState, list[Outcome]]:
    """`state` with `edits` added, and the outcome of each. Raises EditError as `Trainer.edit` does, and what `check`
    raises, which is called between two steps.

    progress: called with how many edits are done.
    """
    outcomes: list[Outcome] = []
    for namespace in dict.fromkeys(edit.namespace for edit in edits):
        namespace_edits = [edit for edit in edits if edit.namespace == namespace]
        with model.evaluating(), checking(check):
            done, before = len(outcomes), within(state, namespace)
            part, report = model.trainer.edit(
                before,
                namespace_edits,
                serve=model.serving,
                progress=lambda count, done=done: progress(done + count),  # type: ignore[misc]
            )
            outcomes += model.trainer.with_before(before, namespace_edits, report.outcomes, serve=model.serving)
        state = _with_part(state, {namespace}, part)
    return state, outcomes


def forget_edits(
    model: WiseModel, state: MemoryState, edit_ids: Collection[str], check: Check | None = None
) -> MemoryState:
    """`state` without these edits, by `Trainer.delete`, and without others that do not verify after that."""
    for names in _independent(state):
        part = _of(state, names)
        ids = [edit_id for edit_id in part.edit_ids if edit_id in edit_ids]
        if ids:
            with model.evaluating(), checking(check):
                part, _ = model.trainer.delete(part, ids, serve=model.serving)
            state = _with_part(state, names, part)
    return state


def split(state: MemoryState) -> dict[str, MemoryState]:
    """The edits of each namespace, with the slots that are theirs; in one pass, however many there are."""
    edits: dict[str, list[Edit]] = {}
    for edit in state.edits:
        edits.setdefault(edit.namespace, []).append(edit)
    if len(edits) < 2:
        return dict.fromkeys(edits, state)
    owner = {edit.id: edit.namespace for edit in state.edits}
    slots: dict[str, list[Slot]] = {name: [] for name in edits}
    for slot in state.slots:
        names = dict.fromkeys(owner[edit_id] for edit_id in slot.edit_ids)
        for name in names:
            others = [i for i in slot.edit_ids if owner[i] != name] if len(names) > 1 else ()
            slots[name].append(slot.without(others).numbered(len(slots[name])))
    keys: dict[str, dict[str, Tensor]] = {name: {} for name in edits}
    for edit_id, edit_keys in state.keys.items():
        keys[owner[edit_id]][edit_id] = edit_keys
    return {name: replace(state, edits=tuple(edits[name]), slots=tuple(slots[name]), keys=keys[name]) for name in edits}


def within(state: MemoryState, namespace: str) -> MemoryState:
    """The edits of one namespace, with the slots that are theirs."""
    return _of(state, {namespace})


def _of(state: MemoryState, namespaces: Collection[str]) -> MemoryState:
    others = {edit.id for edit in state.edits if edit.namespace not in namespaces}
    return state.without(others) if others else state


def _with_part(state: MemoryState, namespaces: Collection[str], part: MemoryState) -> MemoryState:
    """`state` with its edits of these namespaces replaced by `part`. Edits that stay keep their order."""
    others = state.without({edit.id for edit in state.edits if edit.namespace in namespaces})
    if not others.edits:
        return part
    place = {edit.id: i for i, edit in enumerate(state.edits)}
    edits = sorted((*others.edits, *part.edits), key=lambda edit: place.get(edit.id, len(place)))  # stable
    return replace(
        part,
        edits=tuple(edits),
        slots=tuple(slot.numbered(i) for i, slot in enumerate((*others.slots, *part.slots))),
        keys={**others.keys, **part.keys},
    )


def _independent(state: MemoryState) -> list[set[str]]:
    """Groups of namespaces that share no slot. A memory from elsewhere may hold several namespaces in one slot."""
    namespace = {edit.id: edit.namespace for edit in state.edits}
    groups: list[set[str]] = []
    for slot in state.slots:
        names = {namespace[edit_id] for edit_id in slot.edit_ids}
        groups = [*(group for group in groups if not group & names), names.union(*(g for g in groups if g & names))]
    return groups
