"""The commands of a store: what they do, what they say, and with which code they end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stores import digest, edit, edits, learn, new_folder, written
from typer.testing import CliRunner, Result

import wise
from wise.cli.app import app
from wise.memory.store import journal
from wise.memory.store.backends import migrations
from wise.memory.store.backends.migrations import Migration
from wise.memory.store.edit_request import Event
from wise.memory.store.store import Store


def run(*arguments: str | Path | int) -> Result:
    return CliRunner().invoke(app, [*(() if arguments[0] == "info" else ("store",)), *map(str, arguments)])


def told(*arguments: str | Path | int, code: int = 0) -> Any:
    """The JSON that a command ends with."""
    result = run(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (code, ""), result.output
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def folder() -> Iterator[Path]:
    """A store of two versions, and an edit that waits."""
    with new_folder() as parent:
        with Store.open(parent / "store") as store:
            learn(store, [edit(1, author="someone"), edit(2)])
            learn(store, [wise.Edit(id="n", prompt="prompt 2", target="there", namespace="default")], without=["e2"])
            store.enqueue([edit(3, namespace="g\u00e9o")])
        yield parent / "store"


def current(folder: Path) -> str:
    with Store.open(folder, writer=False) as store:
        return str(digest(store.read().state))


def test_log_tells_the_life_of_every_edit(folder: Path) -> None:
    found = told("log", folder)
    assert found["current"] == 2 and found["counts"] == {"live": 2, "retired": 1, "queued": 1}
    assert [event["number"] for event in found["events"]] == list(range(1, len(found["events"]) + 1))
    life = told("log", folder, "--edit", "e1")["events"]
    assert [(event["kind"], event["version"]) for event in life] == [("queued", None), ("training", None), ("live", 1)]
    assert life[0]["author"] == "someone"
    for composed in ("g\u00e9o", "ge\u0301o"):
        assert [event["kind"] for event in told("log", folder, "--namespace", composed)["events"]] == ["queued"]
    assert told("log", folder, "--since", 3, "--limit", 2)["events"] == found["events"][3:5]
    made = told("log", folder, "--versions")["versions"]
    assert [(version["number"], version["kind"]) for version in made] == [(1, "commit"), (2, "commit")]
    assert told("log", folder, "--versions", "--limit", 2)["versions"] == made
    assert told("log", folder, "--versions", "--limit", 1)["versions"] == made[1:]
    shown = run("log", folder).stdout
    assert "prompt 1 → here" in " ".join(shown.split()) and "version 2; 2 live, 1 retired, 1 queued" in shown


def test_a_log_reads_the_events_and_the_edits_that_it_shows_and_no_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counting(name: str) -> None:
        parse = getattr(journal, name)
        monkeypatch.setattr(journal, name, lambda row: (read.append(name), parse(row))[1])

    for name in ("shown_event", "shown_ticket"):
        counting(name)
    assert len(told("log", folder, "--limit", 2)["events"]) == 2
    assert read == ["shown_event"] * 2 + ["shown_ticket"] * 2
    read.clear()
    assert len(told("log", folder)["events"]) == read.count("shown_event") > 10
    assert read.count("shown_ticket") == 4


def test_diff_tells_what_changed(folder: Path) -> None:
    found = told("diff", folder, 1, 2)
    assert found["added"] == found["removed"] == []
    assert [(pair["before"]["target"], pair["after"]["target"]) for pair in found["changed"]] == [("here", "there")]
    assert len(told("diff", folder, 0, 1)["added"]) == 2 and len(told("diff", folder, 1, 0)["removed"]) == 2


def test_rollback_and_delete_make_versions_and_say_who_and_why(folder: Path) -> None:
    made = told("rollback", folder, 1, "--author", "me", "--reason", "it was right")
    assert (made["number"], made["kind"], made["author"], made["reason"]) == (3, "rollback", "me", "it was right")
    assert current(folder) == digest(written([edit(1, author="someone"), edit(2)]))
    assert told("delete", folder, "e1", "e3")["edits"] == 1
    assert current(folder) == digest(written([edit(2)]))
    assert told("log", folder)["counts"] == {"retired": 3, "live": 1}


def test_gc_collects_and_check_finds_what_is_wrong(folder: Path) -> None:
    assert told("check", folder)["problems"] == []
    assert told("gc", folder, "--keep", 1)["versions"] == [1]
    found = told("check", folder)
    assert (found["problems"], found["versions"], found["unneeded"]) == ([], 1, 0)
    with Store.open(folder, writer=False) as store:
        manifest = store.journal.version().manifest
    (folder / "blobs" / manifest).write_bytes(b"rot")
    assert len(told("check", folder, code=4)["problems"]) == 1
    assert "is damaged" in run("check", folder).stdout


def test_a_check_takes_nothing_apart_twice_unless_that_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linked, read = Event.linked, list[int]()
    monkeypatch.setattr(Event, "linked", lambda self, before: (read.append(self.number), linked(self, before))[1])

    def taken_apart(*options: str) -> list[int]:
        read.clear()
        assert told("check", folder, *options)["problems"] == []
        return [*read]

    every = taken_apart()
    assert every == [event["number"] for event in told("log", folder)["events"]]
    assert taken_apart() == [] and taken_apart("--complete") == every


def test_an_edit_is_erased_and_an_anchor_from_before_tells_of_it(folder: Path) -> None:
    anchor = folder.with_name("anchor.json")
    assert run("anchor", folder, "--output", anchor).exit_code == 0
    assert told("check", folder, "--anchor", anchor)["erased_since"] == []
    told("delete", folder, "e1")
    assert told("erase", folder, "e1", "--reason", "request 17")["versions"] == [1, 2]
    found = told("check", folder, "--anchor", anchor)
    [event] = found["erased_since"]
    assert found["problems"] == []
    assert f"see that events {event} are yours" in " ".join(run("check", folder, "--anchor", anchor).stdout.split())


def test_a_pack_goes_from_store_to_store(folder: Path) -> None:
    pack, other = folder.with_name("pack"), folder.with_name("other")
    assert told("export", folder, pack, "--version", 1) == {"edits": 2, "output": str(pack)}
    assert told("import", other, pack, "--author", "me")["kind"] == "import"
    assert current(other) == digest(written([edit(1, author="someone"), edit(2)]))
    assert {edit["id"] for edit in told("info", "--memory", pack)["memory"]["edits"]} == {"e1", "e2"}


@pytest.mark.parametrize("command", ["log", "check", "gc", "rollback 1", "delete e1", "diff 0 1", "export pack"])
def test_a_name_that_is_no_store_is_refused_and_makes_none(command: str, tmp_path: Path) -> None:
    name, *rest = command.split()
    result = run(name, tmp_path / "typo", *rest)
    assert result.exit_code == 2 and "is no store" in result.stderr and len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_command_that_writes_brings_an_older_journal_up_to_date(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = Migration("later", ("CREATE INDEX tickets_by_reason ON tickets (reason)",))
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, later))
    assert "open it once as its writer" in run("log", folder).stderr
    assert told("gc", folder)["versions"] == []
    assert told("log", folder)["current"] == 2 and told("check", folder)["problems"] == []


def test_while_a_writer_works_a_store_can_be_looked_at_and_not_changed(folder: Path) -> None:
    with Store.open(folder) as store:
        assert told("log", folder)["current"] == 2 and told("check", folder)["problems"] == []
        result = run("rollback", folder, 1)
        assert result.exit_code == 2 and "has a writer already" in result.stderr
        learn(store, edits(9))
    assert told("log", folder)["current"] == 3


def test_what_is_no_anchor_is_said_and_not_shown(folder: Path, tmp_path: Path) -> None:
    gone = run("check", folder, "--anchor", tmp_path)
    assert gone.exit_code == 2 and "Is a directory; check the path" in gone.stderr and "no anchor" not in gone.stderr
    (tmp_path / "key").write_bytes(b"secret \xff\n")
    other = run("check", folder, "--anchor", tmp_path / "key")
    assert other.exit_code == 2 and "is no anchor" in other.stderr and "secret" not in other.stderr


def test_a_number_that_no_journal_holds_is_refused(folder: Path) -> None:
    for command in (["rollback", folder, 2**63], ["diff", folder, 2**63, 0], ["log", folder, "--since", 2**63]):
        done = run(*command)
        assert done.exit_code == 2 and "Invalid value" in done.stderr, done.output
    assert run("log", folder, "--since", 2**63 - 1).exit_code == 0


def test_bad_input_is_said_in_one_line(folder: Path) -> None:
    for arguments, said in (
        (("delete", folder, "e9"), "neither live nor queued"),
        (("rollback", folder, 9), "has no version 9"),
        (("import", folder.with_name("new"), folder), "holds no wise_config.json"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2 and said in result.stderr and len(result.stderr.splitlines()) == 1, result.output
    assert not folder.with_name("new").exists()
