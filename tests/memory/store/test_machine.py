"""Any sequence of what a store can do, held against a model of dicts and lists."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from stores import BASE, CONFIG, IN_MEMORY, digest, edit, written

from wise.edits import Edit
from wise.errors import EditError, StoreError
from wise.memory.store.store import Store

NAMES = st.integers(min_value=0, max_value=30)
TARGETS = st.sampled_from(["here", "there", "nowhere"])


class Machine(RuleBasedStateMachine):
    """The model: what every ticket is, and which tickets every version holds, in their order."""

    store: Store

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=IN_MEMORY)
        self.place = Path(self.folder.name) / "store"
        self.store = Store.open(self.place)
        self.tickets: list[dict[str, Any]] = []
        self.versions: list[list[int]] = [[]]
        self.collected: set[int] = set()
        self.pins: list[tuple[int, Any, Any]] = []

    # -- the model ------------------------------------------------------------------------------

    def numbers(self, *wanted: str) -> list[int]:
        return [number for number, ticket in enumerate(self.tickets, start=1) if ticket["status"] in wanted]

    def edit(self, number: int) -> Edit:
        found: Edit = self.tickets[number - 1]["edit"]
        return found

    def move(self, numbers: list[int], status: str) -> None:
        for number in numbers:
            self.tickets[number - 1]["status"] = status

    def under_way(self) -> set[str]:
        return {self.edit(number).id for number in self.numbers("queued", "training", "live")}

    def wanted(self, version: int) -> str:
        return str(digest(written([self.edit(number) for number in self.versions[version]])))

    # -- what is done -----------------------------------------------------------------------------

    @rule(new=st.dictionaries(NAMES, TARGETS, min_size=2, max_size=5))
    def enqueue(self, new: dict[int, str]) -> None:
        given = [edit(name, target) for name, target in new.items()]
        if {item.id for item in given} & self.under_way():
            with pytest.raises(EditError, match="already"):
                self.store.enqueue(given)
            return
        got = self.store.enqueue(given)
        assert [ticket.number for ticket in got] == list(range(len(self.tickets) + 1, len(self.tickets) + 1 + len(got)))
        self.tickets += [{"edit": item, "status": "queued"} for item in given]

    @precondition(lambda self: self.numbers("queued"))
    @rule(limit=st.sampled_from([5, 2, 1]))
    def begin(self, limit: int) -> None:
        wanted = self.numbers("queued")[:limit]
        assert [ticket.number for ticket in self.store.claim(limit)] == wanted
        self.move(wanted, "training")

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        batch = self.numbers("training")
        live = self.versions[-1]
        failing = data.draw(st.sets(st.sampled_from(batch)) if batch else st.just(set()), label="failing")
        dropped = data.draw(st.sets(st.sampled_from(live), max_size=2) if live else st.just(set()), label="dropped")
        good = [number for number in batch if number not in failing]
        held = [number for number in live if number not in dropped] + good
        before = self.store.read().state.without([self.edit(number).id for number in dropped])
        state = written([self.edit(number) for number in good], before)
        tickets = self.store.journal.tickets(numbers=batch)
        version = self.store.commit(tickets, state, parent=len(self.versions) - 1, config=CONFIG, base=BASE)
        self.move(good, "live")
        self.move(list(failing), "failed")
        self.move(list(dropped), "retired")
        if held != live:
            self.versions.append(held)
        assert version.number == len(self.versions) - 1

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        known = self.numbers("queued", "training", "live")
        if not known:
            with pytest.raises(StoreError, match="neither live nor queued"):
                self.store.delete(["e0"])
            return
        gone = data.draw(st.sets(st.sampled_from(known), min_size=min(2, len(known)), max_size=3), label="gone")
        self.store.delete([self.edit(number).id for number in gone])
        if gone & set(self.versions[-1]):
            self.versions.append([number for number in self.versions[-1] if number not in gone])
        self.move(list(gone), "retired")

    @precondition(lambda self: len(self.versions) > 1)
    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        version = data.draw(st.integers(0, len(self.versions) - 1), label="version")
        held = self.versions[version]
        returning = {self.edit(n).id for n in held if self.tickets[n - 1]["status"] != "live"}
        waiting = {self.edit(number).id for number in self.numbers("queued", "training")}
        if version in self.collected or returning & waiting:
            with pytest.raises(StoreError, match="was collected|would come back while"):
                self.store.rollback(version)
            return
        self.store.rollback(version)
        self.move(self.versions[-1], "retired")
        self.move(held, "live")
        self.versions.append(list(held))

    @rule(keep=st.integers(1, 4))
    def collect(self, keep: int) -> None:
        found = self.store.gc(keep=keep)
        assert not {number for number, _, _ in self.pins} & set(found.versions)
        assert not set(found.versions) & set(range(len(self.versions) - keep, len(self.versions)))
        self.collected |= set(found.versions)

    @precondition(lambda self: len(self.pins) < 3)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        left = [number for number in range(len(self.versions)) if number not in self.collected]
        number = data.draw(st.sampled_from(left), label="version")
        pin = self.store.pin(number)
        self.pins.append((number, pin, pin.__enter__()))

    @precondition(lambda self: self.pins)
    @rule()
    def let_go(self) -> None:
        number, pin, snapshot = self.pins.pop(0)
        if self.versions[number]:
            assert digest(snapshot.state) == self.wanted(number)
        else:  # whether it has a space of keys depends on how it was emptied
            assert not (snapshot.state.edits or snapshot.state.slots or snapshot.state.keys)
        pin.__exit__(None, None, None)

    @rule()
    def reopen(self) -> None:
        for _, pin, _ in self.pins:
            pin.__exit__(None, None, None)
        self.pins.clear()
        self.store.close()
        self.store = Store.open(self.place)
        self.move(self.numbers("training"), "queued")

    # -- what always holds --------------------------------------------------------------------------

    @invariant()
    def tickets_are_as_they_should_be(self) -> None:
        found = [(ticket.edit, ticket.status) for ticket in self.store.journal.tickets()]
        assert found == [(ticket["edit"], ticket["status"]) for ticket in self.tickets]

    @invariant()
    def the_current_version_is_as_it_should_be(self) -> None:
        assert self.store.journal.version().number == len(self.versions) - 1
        assert self.numbers("live") == sorted(self.versions[-1])
        if self.versions[-1]:
            assert digest(self.store.read().state) == self.wanted(-1)

    def teardown(self) -> None:
        try:
            self.reopen()
            assert self.store.check().problems == ()
            for number, held in enumerate(self.versions):
                if held and number not in self.collected:
                    assert digest(self.store.read(number).state) == self.wanted(number)
        finally:
            self.store.close()
            self.folder.cleanup()


PROFILE = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


def test_any_sequence_is_as_the_model_says() -> None:
    run_state_machine_as_test(Machine, settings=PROFILE)


def test_a_store_that_forgets_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    delete = Store.delete

    def forgetful(store: Store, edit_ids: list[str], **told: Any) -> Any:
        return delete(store, edit_ids[:1], **told)

    monkeypatch.setattr(Store, "delete", forgetful)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Machine, settings=settings(PROFILE, phases=[Phase.generate]))
