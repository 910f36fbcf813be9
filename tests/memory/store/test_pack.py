"""A knowledge pack carries a version from one store to another, and to a model, with what was verified of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from stores import BASE, CONFIG, digest, edit, edits, learn, new_folder, statuses, written
from tiny import BATCH, generated, reading, same_state, tiny_model, tiny_tokenizer, wrap_tiny

import wise
from wise.errors import ArtifactError, EditError, StoreError
from wise.memory.artifact import load_memory, save_memory
from wise.memory.store import failpoints
from wise.memory.store.edit_request import EditRequest
from wise.memory.store.pack import TICKETS_FILE
from wise.memory.store.store import Store
from wise.training.report import Outcome


@pytest.fixture
def folder() -> Iterator[Path]:
    with new_folder() as made:
        yield made


@pytest.fixture
def source(folder: Path) -> Iterator[Store]:
    with Store.open(folder / "source") as store:
        store.enqueue([EditRequest(edit=edit(1, author="a"), reason="because", valid_until="2999-01-01"), edit(2)])
        learn(store, [])
        learn(store, [edit(3, namespace="geo")])
        yield store


def test_what_is_imported_is_what_was_exported_with_its_provenance(source: Store, folder: Path) -> None:
    assert source.export_pack(folder / "pack", version=1) == 2
    with Store.open(folder / "target") as target:
        version = target.import_pack(folder / "pack", author="operator")
        assert (version.number, version.kind, version.edits) == (1, "import", 2)
        assert digest(target.read().state) == digest(source.read(1).state)
        for mine, theirs in zip(target.journal.tickets(), source.journal.tickets(), strict=False):
            assert mine.request == theirs.request and mine.verified == theirs.verified == {"answer": "here"}
        assert target.check().problems == ()
        with pytest.raises(StoreError, match="imported before"):
            target.import_pack(folder / "pack")


def test_all_that_is_noted_of_an_edit_is_carried(folder: Path) -> None:
    texts = {f"paraphrases[{number}]": "在" * 300 for number in range(32)}
    outcome = Outcome(
        id="e1", status="verified", answer="here", steps=3, loss=0.5, milliseconds=1.5, holds={"chat: prompt": True},
        said=texts, before=texts, also_answers=("Who is it?",), tried=("3 steps",),
    )  # fmt: skip
    assert all(vars(outcome).values()), "of every field there is something to carry"
    with Store.open(folder / "source") as source:
        source.enqueue(edits(1))
        noted = {"e1": asdict(outcome)}
        source.commit(source.claim(), written(edits(1)), parent=0, config=CONFIG, base=BASE, outcomes=noted)
        source.export_pack(folder / "pack")
    with Store.open(folder / "target") as target:
        target.import_pack(folder / "pack")
        assert target.journal.tickets()[0].verified == json.loads(json.dumps(asdict(outcome)))


def test_a_pack_is_put_beside_what_is_there_and_takes_the_place_of_the_same_prompt(source: Store, folder: Path) -> None:
    source.export_pack(folder / "pack")
    with Store.open(folder / "target") as target:
        mine = replace(edit(9), prompt="prompt 2", target="there")
        learn(target, [edit(7), mine])
        target.import_pack(folder / "pack")
        assert statuses(target) == {"e7": "live", "e9": "retired", "e1": "live", "e2": "live", "e3": "live"}
        wanted = written([edit(7), edit(1, author="a"), edit(2), edit(3, namespace="geo")])
        assert digest(target.read().state) == digest(wanted)
        target.rollback(1)
        assert digest(target.read().state) == digest(written([edit(7), mine]))


def test_a_pack_is_written_over_the_last_one_and_a_card_of_ones_own_is_kept(source: Store, folder: Path) -> None:
    card = folder / "pack" / "README.md"
    source.export_pack(folder / "pack")
    assert "3 edits" in card.read_text()
    source.export_pack(folder / "pack", version=1)
    assert "2 edits" in card.read_text()
    card.write_text("# Ours\n")
    source.export_pack(folder / "pack")
    assert card.read_text() == "# Ours\n" and len(load_memory(folder / "pack")[1].edits) == 3


def test_one_namespace_alone(source: Store, folder: Path) -> None:
    assert source.export_pack(folder / "pack", namespace="geo") == 1
    assert load_memory(folder / "pack")[1].edit_ids == ("e3",)
    with pytest.raises(StoreError, match="no edits to export"):
        source.export_pack(folder / "pack", namespace="none")


def test_a_pack_that_does_not_fit_is_refused_and_nothing_is_taken_in(source: Store, folder: Path) -> None:
    state = written(edits(8))
    other = replace(state, key_space=replace(state.key_space, threshold=0.1))  # type: ignore[type-var]
    cases = {
        "another base": (CONFIG, replace(BASE, digest="1" * 64), state),
        "other settings": (replace(CONFIG, seed=1), BASE, state),
        "another router": (CONFIG, BASE, other),
    }
    before = source.log()
    for number, (said, (config, base, wrong)) in enumerate(cases.items()):
        save_memory(folder / str(number), config=config, base=base, state=wrong)
        with pytest.raises(StoreError, match=said):
            source.import_pack(folder / str(number))
    save_memory(folder / "same", config=CONFIG, base=BASE, state=written(edits(2)))
    with pytest.raises(EditError, match="edit 'e2' is live already, as ticket 2; leave the edit out"):
        source.import_pack(folder / "same")
    assert source.log() == before


def test_a_pack_of_another_base_is_refused_also_where_no_edit_is_live_and_none_of_its_edits_stays(folder: Path) -> None:
    save_memory(folder / "pack", config=CONFIG, base=replace(BASE, digest="1" * 64), state=written(edits(8)))
    with Store.open(folder / "store") as store:
        learn(store, edits(1))
        store.delete(["e1"])
        with pytest.raises(StoreError, match="another base"):
            store.import_pack(folder / "pack")
        assert statuses(store) == {"e1": "retired"}


def test_tickets_that_were_changed_or_belong_to_another_memory_are_refused(source: Store, folder: Path) -> None:
    source.export_pack(folder / "pack")
    source.export_pack(folder / "other", version=1)
    file = folder / "pack" / TICKETS_FILE
    text = file.read_text()
    for wrong in (text.replace("because", "besides"), (folder / "other" / TICKETS_FILE).read_text(), "{", "[]"):
        file.write_text(wrong)
        with Store.open(folder / "target") as target, pytest.raises(ArtifactError, match=f"{TICKETS_FILE} is refused"):
            target.import_pack(folder / "pack")
    data = json.loads(text)
    assert data["tickets"]["e1"]["reason"] == "because"
    file.unlink()
    with Store.open(folder / "target") as target:
        assert target.import_pack(folder / "pack").edits == 3
        assert target.journal.tickets()[0].reason is None


def test_an_import_that_was_cut_off_is_completed_by_the_same_call(
    source: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.export_pack(folder / "pack")
    for turn in range(1, 6):
        failpoints.passages.clear()
        with Store.open(folder / f"target {turn}") as target:
            monkeypatch.setenv(failpoints.VARIABLE, f"transaction-begun:EIO:{turn}")
            try:
                target.import_pack(folder / "pack")
            except StoreError:
                pass
            else:
                break
            finally:
                monkeypatch.delenv(failpoints.VARIABLE)
        with Store.open(folder / f"target {turn}") as target:
            assert target.import_pack(folder / "pack").edits == 3
            assert target.check().problems == ()
    assert turn == 4


@pytest.mark.parametrize("mode", ["merge", "retrieve", "hybrid"])
def test_every_mode_goes_into_a_store_and_out_to_a_model(mode: str, folder: Path) -> None:
    wrapped = wrap_tiny("llama", mode)
    wrapped.save_pretrained(folder / "saved")
    with Store.open(folder / "store") as store:
        store.import_pack(folder / "saved")
        assert same_state(store.read().state, wrapped.state)
    with Store.open(folder / "store") as store:
        snapshot = store.read()
        assert same_state(snapshot.state, wrapped.state)
        assert (snapshot.config, snapshot.base) == (wrapped.wise_config, wrapped.fingerprint())
        store.export_pack(folder / "pack")
        assert store.check().problems == ()
    again = wise.WiseModel.from_pretrained(folder / "pack", tiny_model("llama"), tiny_tokenizer(), **reading(mode))
    assert generated(again, BATCH) == generated(wrapped, BATCH)
    with wrapped.disabled() as base:
        assert generated(again, BATCH) != generated(base, BATCH), "the memory changes nothing"
