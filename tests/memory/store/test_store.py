"""The store: what is acknowledged stays, versions are what was committed, and one process changes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stores import BASE, CONFIG, digest, edit, edits, end, learn, statuses, waiting, written
from waiting import until

import wise
from wise.errors import EditError, StoreError
from wise.memory.slot import Slot
from wise.memory.state import MemoryState
from wise.memory.store import journal as journal_module
from wise.memory.store.edit_request import EditRequest, Ticket
from wise.memory.store.segments import StoredSlot
from wise.memory.store.store import Store
from wise.memory.store.versions import read


@pytest.fixture
def store(place: str) -> Iterator[Store]:
    with Store.open(place) as opened:
        yield opened
    with Store.open(place) as whole:
        assert whole.check().problems == ()


def again(store: Store, place: str) -> Store:
    """The same store, opened anew by its writer."""
    store.close()
    return Store.open(place)


# -- handing in -------------------------------------------------------------------------------


def test_what_is_acknowledged_is_there_in_its_order_with_all_that_was_said(place: str) -> None:
    full = EditRequest(
        edit=edit(1, author="someone", namespace="geo"),
        reason="the mayor changed",
        valid_from="2020-01-01",
        valid_until="2999-01-01T00:00:00+02:00",
    )
    with Store.open(place) as store:
        first, second = store.enqueue([full, edit(2)], key="call 1")
        assert (first.number, second.number) == (1, 2)
        assert first.request == full and first.valid_until == "2998-12-31T22:00:00.000000+00:00"
    with Store.open(place) as store:
        assert store.journal.tickets() == (first, second)
        assert store.journal.tickets(namespaces=["geo"]) == (first,) and store.journal.tickets(since=1) == (second,)
        assert [event.author for event in store.log()] == ["someone", None]


def test_a_repeated_call_gives_the_same_tickets_and_takes_nothing_in(store: Store) -> None:
    tickets = store.enqueue(edits(1, 2), key="call")
    assert store.enqueue(edits(1, 2), key="call") == tickets
    assert len(store.journal.tickets()) == 2
    with pytest.raises(EditError, match="key 'call' was used for other edits"):
        store.enqueue(edits(1, 3), key="call")
    assert [ticket.number for ticket in store.enqueue(edits(3), key="other")] == [3]


def test_an_edit_under_way_is_refused_and_nothing_beside_it_is_taken_in(store: Store) -> None:
    store.enqueue(edits(1))
    for status in ("queued", "training", "live"):
        with pytest.raises(EditError, match=f"edit 'e1' is {status} already, as ticket 1"):
            store.enqueue(edits(2, 1))
        assert len(store.journal.tickets()) == 1
        if status == "queued":
            batch = store.claim()
        elif status == "training":
            store.commit(batch, written(edits(1)), parent=0, config=CONFIG, base=BASE)
    store.delete(["e1"])
    assert store.enqueue(edits(2, 1))[1].number == 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"reason": " "}, "field 'reason': empty"),
        ({"valid_from": "tomorrow"}, "field 'valid_from': 'tomorrow' was given, an ISO 8601 time"),
        ({"valid_from": "2021-01-01", "valid_until": "2020-01-01"}, "field 'valid_until': 2020.* is not after"),
        ({"edit": "Lyon"}, "field 'edit': str 'Lyon' was given"),
    ],
)
def test_a_request_that_cannot_be_kept_is_refused(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(EditError, match=said):
        EditRequest(**{"edit": edit(1)} | wrong)  # type: ignore[arg-type]


def test_edits_wait_for_their_time_and_are_named_when_it_is_over(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = "2030-01-01T00:00:00.000000+00:00"
    monkeypatch.setattr(journal_module, "now", lambda: at)
    store.enqueue(
        [
            EditRequest(edit=edit(1), valid_from="2031-01-01"),
            EditRequest(edit=edit(2), valid_until="2031-01-01"),
            EditRequest(edit=edit(3), valid_until="2029-01-01"),
        ]
    )
    assert [ticket.edit.id for ticket in learn_and_list(store)] == ["e2"]
    assert statuses(store) == {"e1": "queued", "e2": "live", "e3": "retired"}
    assert store.expired() == ()
    at = "2031-01-01T00:00:00.000000+00:00"
    assert [ticket.edit.id for ticket in store.expired()] == ["e2"]
    assert [ticket.edit.id for ticket in store.claim()] == ["e1"]


def learn_and_list(store: Store) -> tuple[Ticket, ...]:
    learn(store, [])
    return store.journal.tickets(status="live")


def test_a_clock_that_goes_backwards_changes_no_order(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for year in (2040, 2030, 2050, 1999):
        monkeypatch.setattr(journal_module, "now", lambda year=year: f"{year}-01-01T00:00:00.000000+00:00")
        store.enqueue([edit(year)])
    learn(store, [])
    assert [event.at[:4] for event in store.log()[:4]] == ["2040", "2030", "2050", "1999"]
    year = 365 * 86_400
    assert [round((event.jumped or 0) / year) for event in store.log()[:5]] == [0, -10, 20, -51, 0]
    assert store.check().problems == ()
    assert store.read().state.edit_ids == ("e2040", "e2030", "e2050", "e1999")
    assert [event.number for event in store.log(since=3)] == list(range(4, len(store.log()) + 1))


# -- versions ---------------------------------------------------------------------------------


def test_a_version_is_what_was_committed_to_the_last_bit(store: Store, place: str) -> None:
    made = {0: digest(MemoryState())}
    for number in range(1, 30):
        version = learn(store, edits(3 * number, 3 * number + 1), without=[f"e{3 * number - 6}"])
        made[version.number] = digest(store.read().state)
        assert version.edits == len(store.read().state.edits)
    assert len(made) == 30
    store = again(store, place)
    for number, wanted in made.items():
        assert digest(store.read(number).state) == wanted
    assert store.read().config == CONFIG and store.read().base == BASE
    assert digest(store.read().state) != digest(store.read(28).state), "the digest sees no difference"
    store.close()


def test_another_space_of_keys_is_another_version(store: Store, place: str) -> None:
    before = learn(store, edits(1))
    state = store.read().state
    assert state.key_space is not None
    same = replace(state, key_space=replace(state.key_space))
    assert store.commit([], same, parent=1, config=CONFIG, base=BASE) == before, "it is the same to the last bit"
    other = replace(state, key_space=replace(state.key_space, threshold=0.75))  # type: ignore[arg-type]
    assert store.commit([], other, parent=1, config=CONFIG, base=BASE).number == 2
    with Store.open(place, writer=False) as reader:
        assert reader.read().state.key_space == other.key_space


def test_what_failed_is_told_and_makes_no_version(store: Store) -> None:
    assert learn(store, edits(1, 2), failing=["e1"]).number == 1
    assert statuses(store) == {"e1": "failed", "e2": "live"}
    assert store.journal.tickets(edit_id="e2")[0].verified == {"answer": "here"}
    assert learn(store, edits(3), failing=["e3"]).number == 1
    store.enqueue(edits(4))
    store.fail(store.claim(), detail={"why": "out of memory"})
    assert store.journal.tickets(edit_id="e4")[0].verified == {"why": "out of memory"}
    assert store.journal.version().number == 1


def test_training_that_was_cut_off_is_queued_again(store: Store, place: str) -> None:
    store.enqueue(edits(1, 2))
    store.claim()
    reopened = again(store, place)
    assert statuses(reopened) == {"e1": "queued", "e2": "queued"}
    batch = reopened.claim(1)
    reopened.requeue(batch, why="another try")
    assert [ticket.edit.id for ticket in reopened.claim()] == ["e1", "e2"]
    assert [event.kind for event in reopened.journal.events(ticket=1)] == [
        "queued", "training", "queued", "training", "queued", "training",
    ]
    reopened.close()


def test_a_state_that_does_not_follow_is_refused_and_nothing_changes(store: Store) -> None:
    learn(store, edits(1))
    store.enqueue(edits(2))
    batch = store.claim()
    state = written(edits(2), store.read().state)
    altered = replace(edit(2), target="there")
    wrong = {
        "'e3' was neither live nor claimed": written(edits(3), state),
        "'e2' is not the one that was enqueued": written([altered], store.read().state),
        "not in exactly one slot": replace(state, slots=state.slots[:1]),
        "numbered": replace(state, slots=state.slots[::-1]),
        "the version is refused": replace(state, keys={**state.keys, "e2": state.keys["e2"].double()}),
    }
    before = store.log()
    for said, given in wrong.items():
        with pytest.raises(StoreError, match=said):
            store.commit(batch, given, parent=1, config=CONFIG, base=BASE)
    with pytest.raises(StoreError, match="keep a store for each base"):
        store.commit(batch, state, parent=1, config=CONFIG, base=replace(BASE, digest="1" * 64))
    assert store.log() == before
    assert store.commit(batch, state, parent=1, config=CONFIG, base=BASE).number == 2


def test_what_was_made_from_another_version_is_refused(store: Store) -> None:
    """Or else what came meanwhile would be retired unseen."""
    learn(store, edits(1))
    store.enqueue(edits(2))
    batch, before = store.claim(), store.read()
    store.rollback(0)
    with pytest.raises(StoreError, match="version 2 came after 1"):
        store.commit(batch, written(edits(2), before.state), parent=before.version, config=CONFIG, base=BASE)
    assert statuses(store) == {"e1": "retired", "e2": "training"}


def test_ticket_and_version_that_are_not_there_are_said(store: Store) -> None:
    learn(store, edits(1))
    with pytest.raises(StoreError, match="has no version 7; give one from 0 to 1"):
        store.read(7)
    with pytest.raises(StoreError, match="'e9' is neither live nor queued") as refused:
        store.delete(["e9"])
    assert "e1" not in str(refused.value)  # it may be of a namespace that the one who asks does not see
    with pytest.raises(StoreError, match="keep=0"):
        store.gc(keep=0)
    with pytest.raises(StoreError, match="there is no ticket 9"):
        store.journal.tickets(numbers=[9])


# -- undoing ----------------------------------------------------------------------------------


def test_delete_leaves_the_memory_in_which_the_edit_was_never_made(store: Store) -> None:
    learn(store, edits(1, 2, 3))
    learn(store, edits(4))
    store.enqueue(edits(5))
    store.delete(["e2", "e5"], author="me", reason="wrong")
    assert digest(store.read().state) == digest(written(edits(1, 3, 4)))
    assert statuses(store) == {"e1": "live", "e2": "retired", "e3": "live", "e4": "live", "e5": "retired"}
    assert store.claim() == ()
    assert store.journal.tickets(edit_id="e2")[0].retired_in == store.journal.version().number
    assert (store.journal.version().author, store.journal.version().reason) == ("me", "wrong")


def test_a_delete_reads_no_ticket_of_another_edit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    learn(store, edits(1))
    store.enqueue(edits(2, 3, 4))
    read: list[str] = []
    tickets = store.journal.tickets

    def noted(**wanted: Any) -> tuple[Ticket, ...]:
        found = tickets(**wanted)
        read.extend(ticket.edit.id for ticket in found)
        return found

    monkeypatch.setattr(store.journal, "tickets", noted)
    store.delete(["e1", "e3"])
    assert read == ["e3"]


def test_after_collection_no_file_holds_a_value_of_a_deleted_edit(store: Store) -> None:
    learn(store, edits(1, 2, 3))
    value = store.read().state.slots[1].tensors()["values"].numpy().tobytes()

    def held() -> list[str]:
        return [part for part in store.backend.sizes() if value in store.backend.get(part)]

    store.delete(["e2"])
    assert held(), "the value would not be found"
    assert store.gc(keep=1).versions == (1,)
    assert not held()
    assert digest(store.read().state) == digest(written(edits(1, 3)))


def test_rollback_is_bit_for_bit_and_can_be_rolled_back(store: Store) -> None:
    learn(store, edits(1, 2))
    learn(store, edits(3), without=["e1"])
    digests = [digest(store.read(number).state) for number in range(3)]
    for number, target in enumerate((1, 2, 0, 1), start=3):
        version = store.rollback(target)
        assert (version.number, version.kind) == (number, "rollback")
        assert digest(store.read().state) == digests[target]
        live = {ticket.edit.id for ticket in store.journal.tickets(status="live")}
        assert live == set(store.read(target).state.edit_ids)
    assert store.journal.version().manifest == store.journal.version(1).manifest


def test_rollback_tells_apart_two_edits_of_one_id(store: Store) -> None:
    learn(store, [edit(1, "first")])
    store.delete(["e1"])
    learn(store, [edit(1, "second")])
    store.rollback(1)
    assert [(t.edit.target, t.status) for t in store.journal.tickets()] == [("first", "live"), ("second", "retired")]
    store.delete(["e1"])
    store.enqueue([edit(1, "third")])
    with pytest.raises(StoreError, match="'e1'.*ticket 3"):
        store.rollback(1)


def test_a_commit_looks_at_what_is_new_and_knows_the_rest_by_its_being_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(store, edits(*range(40)))
    looked: list[tuple[str, ...]] = []
    equals = StoredSlot.equals

    def counted(self: StoredSlot, slot: Slot, state: MemoryState, tickets: Mapping[str, int]) -> bool:
        looked.append(slot.edit_ids)
        return equals(self, slot, state, tickets)

    monkeypatch.setattr(StoredSlot, "equals", counted)
    learn(store, edits(40))
    assert looked == []
    learn(store, edits(41), without=["e38"])
    assert looked == [("e39",), ("e40",)]  # it is written with another number
    before = store.read()
    slots = tuple(replace(slot) for slot in before.state.slots)
    store.enqueue(edits(42))
    batch = store.claim()
    state = written(edits(42), replace(before.state, slots=slots))
    looked.clear()
    store.commit(batch, state, parent=before.version, config=CONFIG, base=BASE)
    assert len(looked) == len(slots), "those that are not the same objects are looked at one by one"
    assert digest(store.read().state) == digest(state)
    assert digest(again_read(store)) == digest(state)


def again_read(store: Store) -> MemoryState:
    """As it is on the disk."""
    current = store.journal.version()
    return read(current.number, current.manifest, store.backend, {}).state


def test_diff_says_what_came_went_and_changed(store: Store) -> None:
    learn(store, edits(1, 2))
    other = wise.Edit(id="n", prompt="prompt 1", target="there")
    learn(store, [other, edit(3)], without=["e1", "e2"])
    found = store.diff(1, 2)
    assert found.changed == ((edit(1), other),) and found.added == (edit(3),) and found.removed == (edit(2),)
    back = store.diff(2, 1)
    assert (back.added, back.removed, back.changed) == (found.removed, found.added, ((other, edit(1)),))


# -- sharing and collecting -------------------------------------------------------------------


def test_a_commit_writes_what_is_new_however_much_there_is(store: Store) -> None:
    def growth(first: int) -> int:
        before = store.backend.sizes()
        version = learn(store, edits(*range(first, first + 8)))
        new = {part: size for part, size in store.backend.sizes().items() if part not in before}
        return sum(new.values()) - new[version.manifest]

    store.enqueue(edits(*range(1000, 1010)))
    learn(store, [])
    small = growth(2000)
    learn(store, edits(*range(3000, 4000)))
    assert growth(5000) <= 2 * small
    assert growth(6000) <= 2 * small
    segments = store.read().manifest.segments  # type: ignore[union-attr]
    assert sum(rows for rows, _ in segments.values()) == 1034


def test_lone_edits_do_not_make_a_file_each(store: Store) -> None:
    for number in range(40):
        learn(store, edits(number))
    manifest = store.read().manifest
    assert manifest is not None and len(manifest.segments) <= 6
    assert digest(store.read().state) == digest(written(edits(*range(40))))


def test_collection_keeps_the_newest_and_what_they_need(store: Store, place: str) -> None:
    for number in range(6):
        learn(store, edits(number))
    store.rollback(2)
    kept = {number: digest(store.read(number).state) for number in (2, 5, 6, 7)}
    before = store.backend.sizes()
    found = store.gc(keep=3)
    gone = before.keys() - store.backend.sizes().keys()
    assert found.versions == (1, 3, 4) and gone
    assert (found.blobs, found.bytes) == (len(gone), sum(before[digest] for digest in gone)), "manifests among them"
    for number, wanted in kept.items():  # 2 is the memory of 7
        assert digest(read_anew(place, number)) == wanted
    with pytest.raises(StoreError, match="version 3 was collected"):
        store.read(3)
    with pytest.raises(StoreError, match="version 3 was collected"):
        store.rollback(3)
    assert store.check().unneeded == 0
    assert store.gc(keep=3).versions == ()


def read_anew(place: str, number: int) -> MemoryState:
    with Store.open(place, writer=False) as other:
        return other.read(number).state


def test_a_pinned_version_stays_until_it_is_let_go_or_its_process_dies(store: Store, place: str) -> None:
    for number in range(3):
        learn(store, edits(number))

    def reader() -> object:
        other = Store.open(place, writer=False)
        pin = other.pin(1)
        return other, pin, pin.__enter__()

    store.close()
    process = waiting(reader)
    store = Store.open(place)
    try:
        with store.pin(2) as pinned:
            found = store.gc(keep=1)
            assert (found.versions, found.pinned) == ((), (1, 2))
            assert digest(pinned.state) == digest(written(edits(0, 1)))
        assert store.gc(keep=1).pinned == (1,)
        assert digest(store.read(1).state) == digest(written(edits(0)))
    finally:
        end(process)
    until(lambda: store.gc(keep=1).versions == (1,))  # a server learns of it a moment later
    store.close()


def test_other_threads_hand_edits_in_while_a_version_is_collected(store: Store) -> None:
    learn(store, edits(0))
    manifest = store.journal.version().manifest
    handing_in = threading.Thread(target=lambda: store.enqueue(edits(1)))
    reading = threading.Thread(target=store.read)
    with store.backend.unheld(manifest) as unheld:
        assert unheld
        handing_in.start()
        handing_in.join(10)
        assert not handing_in.is_alive(), "the collector would wait for it, and it for the collector"
        reading.start()
        reading.join(0.1)
        assert reading.is_alive(), "what is being collected is held by nobody"
    reading.join()
    assert statuses(store) == {"e0": "live", "e1": "queued"}


def test_readers_see_one_memory_while_edits_land(store: Store) -> None:
    learn(store, edits(0))
    wrong: list[str] = []
    done = threading.Event()

    def read() -> None:
        seen = 0
        while not done.is_set():
            with store.pin() as pinned:
                ids = pinned.state.edit_ids
                whole = ids == tuple(f"e{i}" for i in range(pinned.version))
                if not whole or pinned.version < seen:
                    wrong.append(f"{pinned.version}: {ids}")
                seen = pinned.version

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(1, 25):
        learn(store, edits(number))
        store.gc(keep=1)
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong and store.journal.version().number == 25


# -- one writer -------------------------------------------------------------------------------


def test_a_second_writer_is_refused_and_others_may_read_and_hand_in(store: Store, place: str) -> None:
    learn(store, edits(1))
    with pytest.raises(StoreError, match=r"has a writer already \((process \d+|a session) .*writer=False"):
        Store.open(place)
    with Store.open(place, writer=False) as other:
        assert digest(other.read().state) == digest(written(edits(1)))
        other.enqueue(edits(2))
        for change in (
            lambda: other.claim(),
            lambda: other.delete(["e1"]),
            lambda: other.rollback(1),
            lambda: other.gc(),
            lambda: other.fail([], detail={}),
            lambda: other.requeue([], why=""),
            lambda: other.commit([], MemoryState(), parent=1, config=CONFIG, base=BASE),
        ):
            with pytest.raises(StoreError, match="writer=False; open it as its writer"):
                change()
        learn(store, [])
        assert digest(other.read().state) == digest(written(edits(1, 2)))


def test_the_lock_is_given_back_by_a_writer_that_is_killed(place: str) -> None:
    process = waiting(lambda: Store.open(place))
    with pytest.raises(StoreError, match="has a writer already"):
        Store.open(place)
    end(process)
    Store.open(place).close()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("")
    for name, said in (("mine", "holds letter.txt and is no store"), ("file", "is a file")):
        with pytest.raises(StoreError, match=said):
            Store.open(tmp_path / name)
    for name in ("mine", "none"):
        with pytest.raises(StoreError, match="is no store"):
            Store.open(tmp_path / name, writer=False)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["file", "letter.txt", "mine"]


def test_a_store_that_was_closed_says_so(place: str) -> None:
    store = Store.open(place)
    learn(store, edits(1))
    with store.pin():
        store.close()
    with pytest.raises(StoreError, match="was closed; open it again"):
        store.log()
