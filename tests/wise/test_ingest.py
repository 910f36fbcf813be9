"""Streams of edits: each line once, whatever is cut off, repeated or wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from commands import web
from published import MEND, MQUAKE, ROME, finding, write_rows
from stores import learn
from typer.testing import CliRunner
from waiting import until

from wise.cli.app import app
from wise.edits import Edit
from wise.errors import ConfigError, StoreError
from wise.ingest import Line, lines_of_file
from wise.memory.store.store import Store, open_reader


def line(number: int, **more: Any) -> str:
    return json.dumps({"prompt": f"The capital of land {number} is", "target": "here", **more}) + "\n"


def stream(*arguments: str, store: Path, given: str | None = None) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["stream", *arguments, "--store", str(store), "--json"], input=given)
    assert done.exit_code in (0, 2), done.output
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"exit": done.exit_code, "stderr": done.stderr}


def prompts(store: Path) -> list[str]:
    with Store.open(store, writer=False) as opened:
        return [ticket.edit.prompt for ticket in opened.journal.tickets()]


def test_a_file_is_gone_on_with_and_a_replay_changes_nothing(tmp_path: Path) -> None:
    file, store = tmp_path / "edits.jsonl", tmp_path / "store"
    file.write_text(line(1) + "\n" + line(2, reason="why not"))
    assert stream(str(file), store=store)["taken"] == 2
    assert stream(str(file), store=store) | {"stderr": "", "name": ""} == {
        "name": "", "taken": 0, "known": 0, "refused": 0, "exit": 0, "stderr": ""
    }
    with file.open("a") as appended:
        appended.write(line(3))
    assert stream(str(file), store=store)["taken"] == 1
    assert len(prompts(store)) == 3
    again = stream(str(file), "--name", "again", store=store)  # the same edits by another name are the same edits
    assert (again["taken"], again["known"]) == (0, 3)
    with Store.open(store, writer=False) as opened:
        assert opened.journal.tickets()[1].reason == "why not"


def test_standard_input_that_is_repeated_changes_nothing(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert stream("-", store=store, given=line(1) + line(2))["taken"] == 2
    again = stream("-", store=store, given=line(1) + line(2) + line(3))
    assert (again["taken"], again["known"]) == (1, 2)
    assert stream("-", store=store, given=line(9))["taken"] == 1  # another text by the same name is not lost


def test_a_bad_line_is_told_and_left_out(tmp_path: Path) -> None:
    store = tmp_path / "store"
    given = "{\n" + '["a"]\n' + line(1, colour="red") + '{"prompt": "x"}\n' + line(2) + "\xff\n"
    told = stream("-", store=store, given=given)
    assert (told["exit"], told["taken"], told["refused"]) == (2, 1, 5)
    for said in ("byte 0: broken JSON", "list ['a'] was given", "'colour'", "'target'"):
        assert said in told["stderr"]
    assert prompts(store) == ["The capital of land 2 is"]


def asked(target: str, **more: Any) -> str:
    return json.dumps({"prompt": "The capital of France is", "target": target, "subject": "France"} | more) + "\n"


def last_words(store: Path) -> list[tuple[str, str | None, str | None]]:
    with Store.open(store, writer=False) as opened:
        tickets = opened.journal.tickets()
    assert len({ticket.edit.id for ticket in tickets}) == len(tickets)
    return [(ticket.edit.target, ticket.reason, (ticket.valid_until or "")[:4] or None) for ticket in tickets]


@pytest.mark.parametrize("named", [{}, {"id": "france"}])
def test_what_is_said_last_counts_also_if_it_was_said_before(tmp_path: Path, named: dict[str, str]) -> None:
    store = tmp_path / "store"
    given = asked("Lyon", **named) + asked("Nice") + asked("Lyon", **named)
    assert stream("-", store=store, given=given)["taken"] == 3
    assert [word for word, _, _ in last_words(store)] == ["Lyon", "Nice", "Lyon"]
    assert stream("-", store=store, given=given)["known"] == 3  # a replay changes nothing
    repeated = stream("-", "--name", "other", store=store, given=asked("Lyon", **named))  # nor what is said already
    assert (repeated["known"], len(last_words(store))) == (1, 3)
    assert stream("-", "--name", "third", store=store, given=given)["exit"] == 0
    assert last_words(store)[-1][0] == "Lyon"


def test_another_validity_or_reason_of_a_known_edit_is_applied(tmp_path: Path) -> None:
    store = tmp_path / "store"
    first, again = asked("Lyon", valid_until="2027-01-01"), asked("Lyon", valid_until="2027-01-01T00:00:00+00:00")
    later, why = asked("Lyon", valid_until="2028-01-01"), asked("Lyon", valid_until="2028-01-01", reason="extended")
    told = stream("-", store=store, given=first + again + later + why + why)
    assert (told["taken"], told["known"]) == (3, 2)
    assert last_words(store) == [("Lyon", None, "2027"), ("Lyon", None, "2028"), ("Lyon", "extended", "2028")]


def test_the_last_word_is_that_of_the_store(tmp_path: Path) -> None:
    """Whoever handed it in, under whatever id; what failed is none."""
    with Store.open(tmp_path / "store") as store:
        learn(store, [Edit(prompt="The capital of France is", target="Lyon", subject="France")])
        learn(store, [Edit(prompt="The capital of France is", target="Nice", subject="France", id="n")])
        learn(store, [Edit(prompt="The capital of France is", target="Metz", subject="France", id="m")], failing=["m"])
    told = stream("-", store=tmp_path / "store", given=asked("Nice") + asked("Metz") + asked("Lyon"))
    assert (told["known"], told["taken"]) == (1, 2)


def test_an_id_that_is_of_another_question_is_refused(tmp_path: Path) -> None:
    told = stream("-", store=tmp_path / "store", given=asked("Lyon", id="a") + line(1, id="a"))
    assert (told["taken"], told["refused"]) == (1, 1) and "leave the edit out, or give it another id" in told["stderr"]


def test_prompts_that_are_composed_otherwise_are_one_question(tmp_path: Path) -> None:
    prompts = [normalize(form, "The mayor of Zürich is") for form in ("NFC", "NFD")]
    words = ((0, "Ada"), (1, "Bo"), (0, "Ada"))
    given = "".join(json.dumps({"prompt": prompts[place], "target": target}) + "\n" for place, target in words)
    assert stream("-", store=tmp_path / "store", given=given)["taken"] == 3


def test_namespaces_of_a_stream_are_kept_apart(tmp_path: Path) -> None:
    given = asked("Lyon", namespace="a") + asked("Nice", namespace="b") + asked("Lyon", namespace="a")
    told = stream("-", store=tmp_path / "store", given=given)
    assert (told["taken"], told["known"]) == (2, 1)


def test_a_stream_may_have_the_layouts_of_files(tmp_path: Path) -> None:
    store = tmp_path / "store"
    rows = [ROME, MEND | {"reason": "why not"}, MQUAKE, MEND | {"alt": ""}]
    given = "".join(json.dumps(row) + "\n" for row in rows)
    told = stream("-", store=store, given=given)
    assert (told["taken"], told["refused"]) == (3, 0)
    assert [word for word, _, _ in last_words(store)] == ["Ada Thorne"] * 3 + ["Port Sell"]
    assert [reason for _, reason, _ in last_words(store)] == [None, "why not", None, None]
    assert "'attribute_prompts' (1)" in told["stderr"] and "no edit is asked for" in told["stderr"]
    assert stream("-", store=store, given=given)["known"] == 3


@pytest.mark.parametrize("name", ["e.json", "e.csv", "e.jsonl.gz", "folder"])
def test_a_file_that_is_none_of_lines_is_handed_in_once(tmp_path: Path, name: str) -> None:
    rows = [json.loads(line(number)) | {"reason": "x"} for number in range(3)]
    store, path = tmp_path / "store", tmp_path / name
    if name == "e.csv":
        table = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        path.write_text("\n".join(table).replace("prompt", "question"))
    elif name == "folder":
        path.mkdir()
        for place, row in enumerate(rows):
            write_rows(path, row, name=f"train-0000{place}-of-00003.jsonl")
    else:
        write_rows(tmp_path, *([json.dumps(rows)] if name == "e.json" else rows), name=name)
    more = ["--columns", "prompt=question"] if name == "e.csv" else []
    assert stream(str(path), *more, store=store)["taken"] == 3
    assert stream(str(path), *more, store=store)["known"] == 3
    assert prompts(store) == [row["prompt"] for row in rows]
    done = CliRunner().invoke(app, ["stream", str(path), *more, "--store", str(store), "--follow"])
    assert done.exit_code == 2 and "leave --follow out" in done.stderr


def test_what_only_a_store_keeps_may_have_columns_of_other_names(tmp_path: Path) -> None:
    store, path = tmp_path / "store", tmp_path / "e.csv"
    path.write_text("prompt,target,why,end\nThe capital of France is,Lyon,moved,2031-01-01\n")
    given = ["--columns", "reason=why,valid_until=end"]
    assert stream(str(path), *given, store=store)["taken"] == 1
    with open_reader(str(store)) as opened:
        [ticket] = opened.journal.tickets()
    assert ticket.request.reason == "moved" and str(ticket.request.valid_until).startswith("2031-01-01")
    told = stream(str(path), *given, "--columns", "reason=why,subject=entity", store=tmp_path / "other")
    assert "no record has a value in a column 'entity'" in told["stderr"]
    done = CliRunner().invoke(app, ["edit", "--edits", str(path), *given, "--output", str(tmp_path / "out")])
    assert done.exit_code == 2 and "field 'reason': only a store keeps it" in done.stderr


def test_a_value_of_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """It was taken in as Python spells it, where `wise edit` refuses it."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": ["The capital of France is"], "target": [b"Lyon"]}), tmp_path / "edits.parquet")
    found = stream(str(tmp_path / "edits.parquet"), store=tmp_path / "store")
    assert (found["taken"], found["refused"], found["exit"]) == (0, 1, 2)
    assert "field 'target': bytes b'Lyon' was given" in found["stderr"]


def test_what_was_taken_in_before_a_file_breaks_off_is_said(tmp_path: Path) -> None:
    file = tmp_path / "edits.json"
    file.write_text(f'[{line(1)}, {{"prompt": }}]')
    found = stream(str(file), store=tmp_path / "store")
    assert (found["taken"], found["exit"]) == (1, 2) and "broken JSON" in found["stderr"]
    with Store.open(str(tmp_path / "store"), writer=False) as store:
        assert len(store.journal.tickets()) == 1
    done = CliRunner().invoke(app, ["stream", str(tmp_path / "gone"), "--store", str(tmp_path / "none")])
    assert (done.exit_code, done.stdout) == (2, "") and not (tmp_path / "none").exists()


def test_a_file_of_lines_is_taken_in_with_progress(tmp_path: Path) -> None:
    file = tmp_path / "edits.jsonl"
    file.write_text(line(1) + line(2))
    found = stream(str(file), "--progress", store=tmp_path / "store")
    assert found["taken"] == 2 and f"bytes read: {len(line(1)) - 1} of {file.stat().st_size}" in found["stderr"]
    assert "bytes read" not in stream(str(file), "--name", "again", store=tmp_path / "store")["stderr"]


def test_a_name_that_the_journal_cannot_keep_is_refused(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"\xff.jsonl")
    file.write_text(line(1))
    done = CliRunner().invoke(app, ["stream", str(file), "--store", str(tmp_path / "store")])
    assert done.exit_code == 2 and "--name" in done.stderr and not (tmp_path / "store").exists()
    assert stream(str(file), "--name", "lands", store=tmp_path / "store")["taken"] == 1


def test_a_pipe_that_is_named_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = CliRunner().invoke(app, ["stream", str(tmp_path / "pipe"), "--store", str(tmp_path / "store")])
    assert done.exit_code == 2 and "is a pipe or a device" in done.stderr


@pytest.mark.parametrize(
    ("name", "expected"), [("s02_flipflop", ["Lyon", "Nice", "Lyon"]), ("s08_validity", ["Lyon"] * 2)]
)
def test_streams_that_once_lost_their_last_word(tmp_path: Path, name: str, expected: list[str]) -> None:
    told = stream(str(finding(f"{name}.jsonl")), store=tmp_path / "store")
    assert told["taken"] == len(expected)
    assert [word for word, _, _ in last_words(tmp_path / "store")] == expected


def test_another_file_under_the_same_name_is_refused(tmp_path: Path) -> None:
    file, store = tmp_path / "edits.jsonl", tmp_path / "store"
    file.write_text(line(1) + line(2))
    stream(str(file), store=store)
    file.write_text(line(7) + line(8) + line(9))
    done = CliRunner().invoke(app, ["stream", str(file), "--store", str(store)])
    assert done.exit_code == 2 and "is not what was taken in" in done.stderr
    assert len(prompts(store)) == 2


def test_a_line_that_is_half_written_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "edits.jsonl"
    whole, half = line(1), line(2)
    file.write_text(whole + half[:20])
    lines = lines_of_file(file, "x", None, follow=True)
    assert next(lines) == Line(place=0, data=whole.strip().encode())
    with file.open("a") as appended:
        appended.write(half[20:])
    assert next(lines) == Line(place=len(whole), data=half.strip().encode())
    file.write_text("")
    with pytest.raises(ConfigError, match="was cut"):
        next(lines)


@pytest.fixture
def address() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write((line(1) + line(2)).encode())

        def log_message(self, *_: Any) -> None: ...

    with web(Handler) as port:
        yield f"http://127.0.0.1:{port}/edits"


def test_a_url_is_read_once(tmp_path: Path, address: str) -> None:
    store = tmp_path / "store"
    assert stream(address, store=store)["taken"] == 2
    again = stream(address, store=store)
    assert (again["taken"], again["known"]) == (0, 2)


LINES = 2000
"""Of a file that is long enough to be killed over, on a machine that is busy too."""


@pytest.mark.slow
def test_killed_anywhere_and_started_again_it_takes_every_line_in_once(tmp_path: Path) -> None:
    file, store = tmp_path / "edits.jsonl", tmp_path / "store"
    file.write_text("".join(line(i) for i in range(LINES)))
    Store.open(store).close()
    command = [sys.executable, "-m", "wise", "stream", str(file), "--store", str(store)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with Store.open(store, writer=False) as opened:
        until(lambda: len(opened.journal.tickets(limit=5)) == 5)
        process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(prompts(store))
    assert 5 <= before < LINES, "it was not killed in the middle: the test shows nothing"
    assert stream(str(file), store=store)["taken"] == LINES - before
    found = prompts(store)
    assert found == [f"The capital of land {i} is" for i in range(LINES)]


def test_a_store_is_opened_as_its_writer_only_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers: list[bool] = []
    known = Store.open

    def opened(place: Any, *, writer: bool = True) -> Store:
        writers.append(writer)
        return known(place, writer=writer)

    monkeypatch.setattr(Store, "open", opened)
    open_reader(str(tmp_path / "store")).close()
    open_reader(str(tmp_path / "store")).close()
    assert writers == [False, True, False, False]

    begun = tmp_path / "begun"  # whoever made it came no further
    begun.mkdir()
    (begun / "writer.lock").touch()
    open_reader(str(begun)).close()
    assert writers[4:] == [False, True, False]

    (tmp_path / "store" / "blobs" / "some").touch()
    (tmp_path / "store" / "journal.sqlite3").write_bytes(b"no journal of ours" * 99)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    for place, said in (("store", "cannot be opened"), ("notes", "is no store")):
        with pytest.raises(StoreError, match=said):
            open_reader(str(tmp_path / place))
    (tmp_path / "store" / "journal.sqlite3").unlink()
    with pytest.raises(StoreError, match="restore a backup"):
        open_reader(str(tmp_path / "store"))
    assert writers[7:] == [False] * 3, "a store that is damaged is not written to"
