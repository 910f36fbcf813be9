"""No command waits for training, training loses no edit, and no edit takes more time or memory than it may."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from editors import done, edit, editing, hybrid
from stores import statuses
from tiny import same_state, tiny_model, tiny_tokenizer
from waiting import until

import wise
from wise.errors import ConflictError, EditError, StoreError
from wise.memory.store.edit_request import Version
from wise.memory.store.store import ENDED, Store
from wise.serving import editor as module
from wise.serving.editor import Editor, Leave
from wise.serving.editor_client import command_result
from wise.serving.settings import Settings

NOBODY = {"author": None, "reason": None}


FIRST, SECOND, LONG, BESIDE = edit("first", 4), edit("second", 8), edit("long", 12), edit("beside", 16)


def sharing(mode: Any) -> wise.WiseModel:
    """A model in which edits share slots."""
    fitting = {"learning_rate": 0.03, "max_steps": 100, "prefixes": 1, "slot_capacity": 4, "layer": 1}
    wide = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
    config = wise.WiseConfig(mode=mode, terminator="", bos=False, **fitting)  # type: ignore[arg-type]
    return wise.wrap(tiny_model("llama", **wide), tiny_tokenizer(), config)


class PausedTraining:
    """Pauses training: the first step of each batch with `LONG` waits until `may_go_on` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()
        self.holding = False
        train = module.edited

        def edited(model: Any, state: Any, edits: Sequence[Any], *, check: Callable[[], None], **more: Any) -> Any:
            def check_and_hold() -> None:
                check()
                while any(edit.id == LONG.id for edit in edits) and not self.may_go_on.is_set():
                    self.has_begun.set()
                    self.holding = True
                    try:
                        check()
                    finally:
                        self.holding = False

            return train(model, state, edits, check=check_and_hold, **more)

        monkeypatch.setattr(module, "edited", edited)


@contextmanager
def working(editor: Editor) -> Iterator[threading.Thread]:
    """The editor works off its queue in a thread of its own, and then ends."""

    def work() -> None:
        with suppress(Leave):
            while editor.work():
                pass

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield thread
    except BaseException:
        editor.leave()  # else it would be paused for ever
        raise
    finally:
        thread.join()


def test_deletes_rollbacks_and_reads_do_not_wait_for_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "fresh") as store:
        editor = editing(hybrid(), store)
        for each in (SECOND, LONG):
            store.enqueue([each])
            assert editor.work()
        expected = store.read().state
    paused = PausedTraining(monkeypatch)
    with Store.open(tmp_path / "store") as store:
        editor = editing(hybrid(), store)
        for each in (FIRST, SECOND):
            store.enqueue([each])
            assert editor.work()
        store.enqueue([LONG])
        with working(editor) as thread:
            assert paused.has_begun.wait(60)
            assert done(editor, "delete", edit_ids=["first"], **NOBODY)["edits"] == 1
            assert store.read().state.edit_ids == ("second",)
            with pytest.raises(ConflictError, match="neither live nor queued"):
                done(editor, "delete", edit_ids=["first"], **NOBODY)
            assert thread.is_alive() and statuses(store)["long"] == "training"
            paused.may_go_on.set()
        assert statuses(store) == {"first": "retired", "second": "live", "long": "live"}
        assert same_state(store.read().state, expected), "it is as if the deleted one had never been there"
        assert store.check().problems == ()


def test_what_is_trained_when_a_version_comes_back_is_trained_again_and_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = PausedTraining(monkeypatch)
    with Store.open(tmp_path / "store") as store:
        editor = editing(hybrid(), store)
        store.enqueue([FIRST])
        assert editor.work()
        done(editor, "delete", edit_ids=["first"], **NOBODY)
        store.enqueue([LONG])
        with working(editor):
            assert paused.has_begun.wait(60)
            assert done(editor, "rollback", version=1, **NOBODY)["number"] == 3
            paused.may_go_on.set()
        assert statuses(store) == {"first": "live", "long": "live"}
        assert store.read().version == 4 and store.check().problems == ()


@pytest.mark.parametrize("mode", ["merge", "retrieve"])
def test_a_delete_that_needs_the_model_is_done_between_two_steps(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = PausedTraining(monkeypatch)
    with Store.open(tmp_path / "store") as store:
        editor = editing(sharing(mode), store)
        store.enqueue([FIRST, SECOND])
        assert editor.work() and {*statuses(store).values()} == {"live"}
        store.enqueue([LONG])
        with working(editor) as thread:
            assert paused.has_begun.wait(60)
            answers: list[dict[str, Any]] = []
            assert editor.do("delete", {"edit_ids": ["first"], **NOBODY}, answers.append)
            until(lambda: answers)
            assert command_result(answers[0])["edits"] == 1 and thread.is_alive()
            paused.may_go_on.set()
        assert statuses(store) == {"first": "retired", "second": "live", "long": "live"}
        assert store.check().problems == ()


def test_an_edit_is_cancelled_while_it_is_queued_and_while_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = PausedTraining(monkeypatch)
    with Store.open(tmp_path / "store") as store:
        editor = editing(hybrid(), store)
        store.enqueue([LONG, BESIDE])
        with working(editor):
            assert paused.has_begun.wait(60)
            store.enqueue([SECOND])
            for name in ("long", "second"):
                done(editor, "delete", edit_ids=[name], **NOBODY)
        assert statuses(store) == {"long": "retired", "beside": "live", "second": "retired"}
        assert store.read().state.edit_ids == ("beside",) and store.check().problems == ()
        assert [event.detail for event in store.log() if event.kind == "retired"] == [{"why": "deleted"}] * 2


def test_what_replaces_an_edit_leaves_it_alone_when_it_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = PausedTraining(monkeypatch)
    with Store.open(tmp_path / "store") as store:
        editor = editing(hybrid(), store)
        store.enqueue([FIRST])
        assert editor.work()
        store.enqueue([wise.Edit(id="long", prompt=FIRST.prompt, target=LONG.target, subject=FIRST.subject)])
        with working(editor):
            assert paused.has_begun.wait(60)
            done(editor, "delete", edit_ids=["long"], **NOBODY)
        assert statuses(store) == {"first": "live", "long": "retired"}


def test_previews_are_made_within_training_and_take_their_share_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tmp_path / "fresh") as store:
        editor = editing(hybrid(), store)
        store.enqueue([LONG])
        assert editor.work()
        expected = store.read().state
    paused = PausedTraining(monkeypatch)
    statuses_seen: list[tuple[str, str]] = []
    with Store.open(tmp_path / "store") as store:
        editor = editing(hybrid(), store)
        store.enqueue([LONG])

        def ask(_: Any = None) -> None:
            """A client that previews without end."""
            if _ is not None:
                statuses_seen.append((statuses(store)["long"], _["done"]["outcome"]["status"]))
            if statuses(store)["long"] == "training" and len(statuses_seen) < 50:
                editor.do("preview", {"edit": SECOND.to_dict(), "prompts": ["w33"]}, ask)

        with working(editor):
            assert paused.has_begun.wait(60)
            ask()
            until(lambda: statuses_seen)
            paused.may_go_on.set()
        assert statuses_seen[0] == ("training", "verified")
        assert len(statuses_seen) < 50, "training came to its end beside the previews"
        assert statuses(store) == {"long": "live"}
        assert same_state(store.read().state, expected), "what is done in between changes no bit"


def test_what_is_erased_is_not_written_again_by_what_had_begun_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paused, caplog_level = PausedTraining(monkeypatch), caplog.at_level("INFO")
    erasing = {"edit_ids": ["first"], **NOBODY, "with_author": False}
    with Store.open(tmp_path / "store") as store, caplog_level:
        editor, asking = editing(hybrid(), store), wise.WiseModel.ask
        store.enqueue([FIRST])
        assert editor.work()
        with pytest.raises(ConflictError, match="delete it first"):
            done(editor, "erase", **erasing)
        store.enqueue([LONG])
        with working(editor):
            assert paused.has_begun.wait(60)
            done(editor, "delete", edit_ids=["first"], **NOBODY)
            assert done(editor, "erase", **erasing)["versions"] == (1,)
            paused.may_go_on.set()
        assert "trained again" in caplog.text and statuses(store) == {"first": "retired", "long": "live"}

        def ask(self: wise.WiseModel, *arguments: Any) -> Any:
            done(editor, "erase", **erasing)
            return asking(self, *arguments)

        preview = {"edit": SECOND.to_dict(), "prompts": []}
        assert done(editor, "preview", **preview)["answers"]
        monkeypatch.setattr(wise.WiseModel, "ask", ask)
        with pytest.raises(StoreError, match="an edit was erased meanwhile"):
            done(editor, "preview", **preview)
        assert store.check().problems == ()


@pytest.mark.parametrize(
    ("settings", "batches"),
    [({}, [4, 2]), ({"edit_batch": 3}, [3, 3]), ({"edit_workers": 2}, [6])],
)
def test_edits_do_not_wait_for_more_than_are_fitted_at_once(
    settings: dict[str, int], batches: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, trained = module.edited, []

    def edited(model: Any, state: Any, edits: Sequence[Any], **more: Any) -> Any:
        trained.append(len(edits))
        return train(model, state, edits, **more)

    monkeypatch.setattr(module, "edited", edited)
    with Store.open(tmp_path / "store") as store:
        editor = editing(hybrid(), store, Settings(**settings))
        store.enqueue([edit(f"e{first}", first) for first in range(4, 28, 4)])
        while editor.work():
            pass
        assert trained == batches and store.read().version == len(batches)
        assert set(statuses(store).values()) == {"live"}


def test_an_edit_that_takes_too_long_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paused, thread_time = PausedTraining(monkeypatch), time.thread_time
    monkeypatch.setattr(module.time, "thread_time", lambda: thread_time() + (100 if paused.holding else 0))
    with Store.open(tmp_path / "store") as store:
        editor = editing(hybrid(), store, Settings(edit_seconds=60.0))
        store.enqueue([BESIDE, LONG, SECOND])
        assert editor.work()
        assert statuses(store) == {"long": "failed", "beside": "live", "second": "live"}
        [failed] = store.journal.tickets(edit_id="long")
        assert failed.verified is not None and "more CPU time than edit_seconds=60 s" in failed.verified["why"]


def test_an_edit_that_takes_too_much_memory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(module, "edited", no_room)
    with Store.open(tmp_path / "store") as store:
        editor = editing(hybrid(), store)
        store.enqueue([LONG])
        assert editor.work()
        [failed] = store.journal.tickets(edit_id="long")
        assert failed.verified is not None and "more memory than edit_memory=8 GiB" in failed.verified["why"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_the_editor_gets_no_more_memory_than_it_may() -> None:
    script = (
        "import torch\nfrom wise.serving.editor_process import limit_memory\nlimit_memory(0.25)\n"
        "torch.ones(2**25)\nprint('some')\ntorch.ones(2**28)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stdout == "some\n" and "can't allocate memory" in run.stderr and run.returncode == 1


@pytest.mark.parametrize(
    ("large", "settings", "problem"),
    [
        (edit("large", 20), {"edit_characters": 9}, r"field 'prompt': it has 11 characters"),
        (wise.Edit(id="large", prompt="w20 w21", target=" ".join(["w60"] * 9)), {"target_tokens": 8}, "has 9 tokens"),
        (edit("large", 20, paraphrases=("w20 w22",) * 3), {"edit_tokens": 12}, r"field 'paraphrases\[1\]'.* 13 tokens"),
    ],
)
def test_an_edit_that_is_too_large_fails_before_it_is_trained(
    large: wise.Edit, settings: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    """In whatever way it came into the store. The service refuses it when it is submitted."""
    small = wise.Edit(id="small", prompt="w4 w5", target="w70", subject="w4")
    with Store.open(tmp_path / "store") as store:
        editor = editing(hybrid(), store, Settings(**settings))
        store.enqueue([small, large])
        assert editor.work() and statuses(store) == {"small": "live", "large": "failed"}
        [failed] = store.journal.tickets(edit_id="large")
        with pytest.raises(EditError, match=problem):
            raise EditError((failed.verified or {})["why"])


def test_an_edit_whose_failure_could_not_be_stored_is_not_in_training_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    with Store.open(tmp_path / "store") as store:
        editor = editing(hybrid(), store, Settings(edit_characters=9))
        store.enqueue([LONG])
        with monkeypatch.context() as patch, pytest.raises(StoreError, match="the disk is full"):
            patch.setattr(store, "fail", full)
            editor.work()
        assert statuses(store) == {"long": "queued"}
        assert editor.work() and statuses(store) == {"long": "failed"}


def test_an_edit_that_ends_two_editors_is_quarantined_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """The editor is killed."""

    train = module.edited

    def deadly(model: Any, state: Any, edits: Sequence[wise.Edit], **more: Any) -> Any:
        if any(edit.id == "long" for edit in edits):
            raise Killed
        return train(model, state, edits, **more)

    monkeypatch.setattr(module, "edited", deadly)
    endings = 0
    with Store.open(tmp_path / "store") as store:
        store.enqueue([FIRST, LONG, SECOND])
    while endings < 9:
        with Store.open(tmp_path / "store") as store:
            try:
                editor = editing(hybrid(), store)
                while editor.work():
                    pass
                break
            except Killed:
                endings += 1
    assert endings == 2
    with Store.open(tmp_path / "store") as store:
        assert statuses(store) == {"first": "live", "long": "failed", "second": "live"}
        [failed] = store.journal.tickets(edit_id="long")
        assert failed.verified is not None and failed.verified["why"].startswith("quarantined: 2 editors ended")


def test_an_editor_that_is_told_to_leave_does_so_at_the_next_step_and_that_counts_as_no_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = PausedTraining(monkeypatch)
    exits: list[str] = []
    for _ in range(3):
        with Store.open(tmp_path / "store") as store:
            if not store.journal.tickets():
                store.enqueue([LONG])
            editor = editing(hybrid(), store)

            def work(editor: Editor = editor) -> None:
                try:
                    editor.work()
                except Leave:
                    exits.append("left")

            thread = threading.Thread(target=work)
            paused.has_begun.clear()
            thread.start()
            assert paused.has_begun.wait(60)
            editor.leave()
            assert statuses(store) == {"long": "queued"}
            thread.join()
    paused.may_go_on.set()
    with Store.open(tmp_path / "store") as store:
        assert editing(hybrid(), store).work() and statuses(store) == {"long": "live"} and exits == ["left"] * 3
        assert not [event for event in store.log() if event.detail.get("why") == ENDED]


def test_an_editor_that_is_told_to_leave_claims_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "store") as store:
        editor, version = editing(hybrid(), store), store.journal.version
        store.enqueue([FIRST])

        def told_to_leave() -> Version:
            """Leaves after `work` has checked whether it must leave, and before it claims."""
            editor.leave()
            return version()

        monkeypatch.setattr(store.journal, "version", told_to_leave)
        with pytest.raises(Leave):
            editor.work()
        assert [event.kind for event in store.log()] == ["queued"]


@pytest.mark.parametrize("fails", [False, True], ids=["", "what is damaged is told, and holds up nothing"])
def test_old_versions_are_collected_whatever_made_the_new_ones(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def damaged(**_: Any) -> None:
        raise StoreError("a manifest is damaged")

    with Store.open(tmp_path / "store") as store:
        editor = editing(hybrid(), store, Settings(keep_versions=2))
        if fails:
            monkeypatch.setattr(store, "gc", damaged)
        for _ in range(3):  # commits are odd and deletes are even
            store.enqueue([FIRST])
            assert editor.work()
            done(editor, "delete", edit_ids=["first"], **NOBODY)
        store.enqueue([SECOND])
        assert editor.work() and statuses(store)["second"] == "live"
        collected = [version.number for version in store.journal.versions() if version.collected]
        assert collected == ([] if fails else [1, 3]), "2 and 4 are equal to 6"
        assert ("a manifest is damaged" in caplog.text) == fails


def test_an_edit_whose_time_is_over_and_that_cannot_be_deleted_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StoreError("no room is left")

    reasons: list[str] = []

    def tell(**changed: Any) -> None:
        if "why" in changed:
            reasons.append(changed["why"])

    with Store.open(tmp_path / "store") as store:
        editor = Editor(store, Settings(), tell)
        editor.prepare(hybrid())
        store.enqueue([FIRST])
        assert editor.work()
        monkeypatch.setattr(store, "expired", lambda: store.journal.tickets(status="live"))
        with monkeypatch.context() as patch:
            patch.setattr(store, "delete", full)
            for _ in range(3):
                editor.attend()
        assert reasons == ["no room is left"] and caplog.text.count("edits whose time is over are still served") == 1
        editor.attend()
        assert reasons == ["no room is left", ""] and statuses(store) == {"first": "retired"}


def test_a_preview_that_takes_too_long_or_that_nobody_waits_for_ends(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        editor = editing(hybrid(), store, Settings(preview_seconds=1e-6))
        with pytest.raises(EditError, match="preview_seconds=1e-06 s"):
            done(editor, "preview", edit=SECOND.to_dict(), prompts=[])
        answers: list[dict[str, Any]] = []
        assert editor.do("preview", {"edit": SECOND.to_dict(), "prompts": []}, answers.append, lambda: False)
        editor.work()
        assert not answers


def test_what_waits_for_the_model_of_an_editor_that_gives_up_is_answered(tmp_path: Path) -> None:
    preview = {"edit": SECOND.to_dict(), "prompts": []}
    with Store.open(tmp_path / "store") as store:
        editor, answers = editing(hybrid(), store), list[dict[str, Any]]()
        assert editor.do("preview", preview, answers.append) and not answers
        editor.give_up()
        assert not editor.do("preview", preview, answers.append)
        assert answers == [module.INTERRUPTED, {"kind": "StoreError", "problem": module.PREPARING}]


def test_before_the_model_is_there_the_store_is_changed_and_nothing_is_previewed(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        editor = editing(hybrid(), store)
        store.enqueue([FIRST])
        assert editor.work()
        preparing = Editor(store, Settings())
        with pytest.raises(StoreError, match="still preparing"):
            done(preparing, "preview", edit=SECOND.to_dict(), prompts=[])
        assert done(preparing, "delete", edit_ids=["first"], **NOBODY)["edits"] == 0
        assert done(preparing, "rollback", version=1, **NOBODY)["edits"] == 1


def test_a_command_that_cannot_be_done_is_answered_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise StoreError("the disk cannot be read")

    with Store.open(tmp_path / "store") as store:
        editor = editing(hybrid(), store)
        for name, arguments in (("explode", {}), ("rollback", {"to": 3}), ("delete", {}), ("preview", {"edit": 3})):
            with pytest.raises(StoreError):
                done(editor, name, **arguments)  # type: ignore[arg-type]
        with monkeypatch.context() as patch, pytest.raises(StoreError, match="cannot be read"):
            patch.setattr(store, "read", fails)
            done(editor, "delete", edit_ids=["first"], **NOBODY)
        store.enqueue([FIRST])
        assert editor.work() and statuses(store) == {"first": "live"}


def test_what_another_replica_asks_for_is_answered_while_an_edit_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = PausedTraining(monkeypatch)
    with Store.open(tmp_path / "store") as store, Store.open(tmp_path / "store", writer=False) as reader:
        editor = editing(hybrid(), store)
        store.enqueue([FIRST])
        assert editor.work()
        store.enqueue([LONG])
        with working(editor):
            assert paused.has_begun.wait(60)
            command = reader.commands.enqueue("delete", {"edit_ids": ["first"], **NOBODY}, 60)
            editor.attend()
            answer = reader.commands.take_answer(command)
            assert answer is not None and command_result(answer)["edits"] == 0
            preview_command = reader.commands.enqueue("preview", {"edit": SECOND.to_dict(), "prompts": []}, 60)
            editor.attend()
            answers: list[dict[str, Any]] = []
            until(lambda: answers or answers.extend(filter(None, [reader.commands.take_answer(preview_command)])))
            assert command_result(answers[0])["outcome"]["status"] == "verified"
            assert statuses(store)["long"] == "training"
            paused.may_go_on.set()
        assert statuses(store) == {"first": "retired", "long": "live"}


def test_what_another_replica_withdraws_ends_whether_it_waits_or_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking, batch_sizes, withdrawn_ids = wise.WiseModel.ask, list[int](), list[str]()
    preview = {"edit": SECOND.to_dict(), "prompts": ["w33"] * module.PROMPTS_AT_ONCE}
    with Store.open(tmp_path / "store") as store, Store.open(tmp_path / "store", writer=False) as reader:
        editor = editing(hybrid(), store)

        def ask(self: wise.WiseModel, prompts: Any) -> Any:
            batch_sizes.append(len(prompts))
            for command in withdrawn_ids:
                reader.commands.withdraw(command)
            editor.attend()
            return asking(self, prompts)

        def enqueue_preview() -> str:
            batch_sizes.clear()
            command = reader.commands.enqueue("preview", preview, 60)
            editor.attend()
            return command

        monkeypatch.setattr(wise.WiseModel, "ask", ask)
        command = enqueue_preview()
        assert editor.work() and len(batch_sizes) == 4, "nobody withdraws it: two times before and after"
        answer = reader.commands.take_answer(command)
        assert answer is not None and len(command_result(answer)["answers"]) == 1 + module.PROMPTS_AT_ONCE
        reader.commands.withdraw(enqueue_preview())
        editor.attend()
        assert editor.work() and not batch_sizes, "it waited"
        withdrawn_ids.append(enqueue_preview())
        assert editor.work() and len(batch_sizes) == 2, "it ran, and was withdrawn when the first texts were asked"
        assert reader.commands.take_answer(withdrawn_ids[0]) is None
