"""A store in PostgreSQL: what is particular to it. What holds of every store is in `store/test_store`."""

from __future__ import annotations

import random
import sys
import threading
from contextlib import suppress

import pytest
from postgres import Server, end_sessions
from secrets_told import WORDS, found, secret_values, tell_a_secret
from stores import digest, edit, edits, learn, soak, statuses, written

from wise.errors import ConfigError, StoreError
from wise.memory.store.backends import postgres as postgres_module
from wise.memory.store.failpoints import POINTS
from wise.memory.store.store import Store

pytestmark = pytest.mark.postgres


def session(store: Store) -> int:
    with store.backend.reading() as execute:
        return int(execute("SELECT pg_backend_pid()")[0][0])


def test_a_server_that_is_killed_has_lost_nothing_that_was_acknowledged(server: Server, url: str) -> None:
    store = Store.open(url)
    learn(store, edits(1, 2))
    store.enqueue(edits(3))
    server.kill()
    with pytest.raises(StoreError, match="lost the connection; open it again"):
        store.enqueue(edits(4), key="four")
    with pytest.raises(StoreError):
        store.claim()
    store.close()
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open(url)
    server.start()
    with Store.open(url) as store:
        assert statuses(store) == {"e1": "live", "e2": "live", "e3": "queued"}
        assert digest(store.read().state) == digest(written(edits(1, 2)))
        assert store.check().problems == ()
        store.enqueue(edits(4), key="four")


def test_a_writer_that_lost_its_session_writes_no_more(url: str) -> None:
    first = Store.open(url)
    first.enqueue(edits(1))
    batch = first.claim()
    end_sessions(url, session(first))
    with Store.open(url) as second:
        assert statuses(second) == {"e1": "queued"}
        with pytest.raises(StoreError, match="lost the connection"):
            first.fail(batch, detail={"why": "late"})
        assert first.backend.is_lost
        with pytest.raises(StoreError):
            first.enqueue(edits(2))
        learn(second, [])
        assert statuses(second) == {"e1": "live"}
    first.close()


def test_a_reader_that_lost_its_session_goes_on_in_another(url: str) -> None:
    with Store.open(url) as writer, Store.open(url, writer=False) as reader:
        learn(writer, edits(1))
        end_sessions(url, session(reader))
        with pytest.raises(StoreError, match="lost the connection; try again"):
            reader.log()
        assert reader.log() == writer.log() and reader.enqueue(edits(2))
        with reader.pin():
            end_sessions(url, session(reader))
            with pytest.raises(StoreError, match="lost the connection; try again"):
                reader.log()
        assert reader.check().problems == ()
        assert writer.claim() and (writer.backend.is_lost, reader.backend.is_lost) == (False, False)


def test_a_transaction_that_was_cut_off_does_not_go_on_in_another_session(url: str) -> None:
    import psycopg

    with Store.open(url) as writer, Store.open(url, writer=False) as reader:
        learn(writer, edits(1))
        with pytest.raises(StoreError, match="lost the connection"), reader.backend.transaction() as execute:
            end_sessions(url, int(execute("SELECT pg_backend_pid()")[0][0]))
            with suppress(psycopg.Error):
                execute("DELETE FROM tickets")
            execute("DELETE FROM tickets")  # now it is known that the session is lost
        assert statuses(reader) == statuses(writer) == {"e1": "live"}


@pytest.mark.slow
def test_processes_killed_lose_nothing(url: str) -> None:
    reports = soak.Reports()
    rng = random.Random(3)
    points = [point for point in POINTS if point not in ("blob-synced", "blob-renamed")]  # of a folder alone
    for armed in [*(f"{point}:kill:{turn}" for point in points for turn in (1, 3)), *[None] * 6]:
        assert soak.kill_once(url, reports, rng, armed)
        reports.compare(url)
    assert (reports.lost, reports.wrong, reports.problems) == (0, 0, [])
    assert len(reports.acknowledged) > 10 and reports.reported > 5


@pytest.mark.parametrize("isolation", ["", "serializable"])
def test_replicas_hand_in_at_once_and_no_event_is_passed_over(url: str, isolation: str) -> None:
    """A poller that asks for what came since the last event that it saw sees them all, whatever the server isolates
    transactions by unless it is told."""
    if isolation:
        url += f"{'&' if '?' in url else '?'}options=-c%20default_transaction_isolation%3D{isolation}"
    replicas = [Store.open(url, writer=place == 0) for place in range(4)]
    seen: list[int] = []
    done = threading.Event()

    def hand_in(place: int) -> None:
        for number in range(20):
            replicas[place].enqueue([edit(100 * place + number)])

    def poll() -> None:
        while not done.is_set():
            seen.extend(event.number for event in replicas[0].log(since=seen[-1] if seen else 0))

    threads = [threading.Thread(target=hand_in, args=(place,)) for place in (1, 2, 3)]
    poller = threading.Thread(target=poll)
    for thread in (*threads, poller):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    poller.join()
    seen.extend(event.number for event in replicas[0].log(since=seen[-1]))
    assert seen == list(range(1, 61))
    assert [ticket.number for ticket in replicas[1].journal.tickets()] == list(range(1, 61))
    assert replicas[0].check().problems == ()
    for replica in replicas:
        replica.close()


def test_a_replica_reads_what_another_commits_and_only_what_is_new(url: str) -> None:
    with Store.open(url) as writer, Store.open(url, writer=False) as reader:
        learn(writer, edits(*range(40)))
        before = reader.read()
        learn(writer, edits(100))
        fetched: list[str] = []
        get = reader.backend.get
        reader.backend.get = lambda part: fetched.append(part) or get(part)  # type: ignore[assignment,func-returns-value]
        after = reader.read()
        assert digest(after.state) == digest(written(edits(*range(40), 100)))
        assert after.manifest is not None and before.manifest is not None
        assert set(before.manifest.segments) < set(after.manifest.segments)
        assert not set(fetched) & set(before.manifest.segments)


def test_a_journal_of_the_first_schema_keeps_all_it_says(url: str) -> None:
    import psycopg

    with Store.open(url) as store:
        learn(store, edits(1, 2))
        events = store.log()
    with psycopg.connect(url, autocommit=True) as old:
        old.execute("DROP TABLE wise.commands")
        old.execute("ALTER TABLE wise.events DROP COLUMN jumped")
        for index in ("edit", "namespace", "begin", "end", "acceptance"):
            old.execute(f"DROP INDEX wise.tickets_by_{index}")
        old.execute("DELETE FROM wise.migrations WHERE number > 1")
    with pytest.raises(StoreError, match="has schema 1"):
        Store.open(url, writer=False)
    with Store.open(url) as store:
        assert store.log() == events and store.check().problems == ()


@pytest.mark.slow
def test_what_is_erased_is_in_no_table_and_no_file_of_the_server_but_its_log(server: Server, url: str) -> None:
    import psycopg

    def everything() -> str:
        with psycopg.connect(url) as connection:
            tables = [f"wise.{name}" for (name,) in connection.execute("SELECT relname FROM pg_class WHERE relkind = "
                      "'r' AND relnamespace = 'wise'::regnamespace")] + ["pg_stats"]
            rows = [row for table in tables for row in connection.execute(f"SELECT * FROM {table}".encode())]
        return " ".join(v.decode(errors="replace") if isinstance(v, bytes) else str(v) for row in rows for v in row)

    def in_files() -> set[str]:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CHECKPOINT")
        return found(server.data, WORDS, values, leave="pg_wal")

    with Store.open(url) as store:
        tell_a_secret(store)
        values = secret_values(store)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ANALYZE")  # as the server does by itself, now and then
        told = everything()
        assert all(word in told or ascii(word)[1:-1] in told for word in WORDS), "it would not be seen"
        assert {"Zanzibar", "Quetzalcoatl", "values"} <= in_files(), "it would not be seen"
        anchor = store.anchor()
        assert store.erase(["secret"]).versions == (2, 3)
        told = everything()
        assert not [word for word in WORDS if word in told or ascii(word)[1:-1] in told]
        assert in_files() == set()
        assert store.check(anchor=anchor).problems == () and store.check().erased == 1


def test_an_erasure_says_that_a_transaction_from_before_keeps_the_rows(
    server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    monkeypatch.setattr(postgres_module, "LOCK_PATIENCE", 0.3)

    def in_files() -> set[str]:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CHECKPOINT")
        return found(server.data, WORDS, values, leave="pg_wal")

    with Store.open(url) as store:
        tell_a_secret(store)
        values = secret_values(store)
        with psycopg.connect(url) as other:  # of any program that uses the database
            other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            other.execute("SELECT 1")
            with pytest.raises(StoreError, match="could not be scrubbed; do it again"):
                store.erase(["secret"])
            assert {"Zanzibar", "values"} <= in_files(), "then there would be nothing to say"
        assert store.erase(["secret"]).tickets == ()
        assert in_files() == set()


def test_a_session_that_is_stopped_holds_others_up_for_a_bounded_time(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(url) as writer:
        learn(writer, edits(1))
        monkeypatch.setattr(postgres_module, "LOCK_PATIENCE", 0.2)
        with Store.open(url, writer=False) as reader, writer.backend.transaction():
            with pytest.raises(StoreError, match="another process has been reading or writing it for more than"):
                reader.enqueue(edits(2))
            assert reader.log() == reader.log(), "who reads is not held up"
        with Store.open(url, writer=False) as stopped:
            monkeypatch.setattr(postgres_module, "FROZEN", 0.2)
            with pytest.raises(StoreError, match="lost the connection"), stopped.backend.transaction():
                monkeypatch.undo()
                writer.enqueue(edits(2))
            stopped.enqueue(edits(3))
        assert statuses(writer) == {"e1": "live", "e2": "queued", "e3": "queued"}
        assert writer.check().problems == ()


def test_both_ends_look_whether_the_other_machine_is_there(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the locks of a writer whose machine lost its power would be kept for hours."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    given: list[str] = []
    connect = psycopg.connect
    monkeypatch.setattr(psycopg, "connect", lambda info, **said: given.append(info) or connect(info, **said))
    ours = "SELECT count(*) FROM pg_settings WHERE source = 'session' AND name = ?"
    with Store.open(f"{url}&keepalives_idle=7") as store, store.backend.reading() as execute:
        for name in ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout"):
            assert execute(ours, name) == [(1,)], name
        assert execute(ours, "work_mem") == [(0,)], "it would be seen"
    info = conninfo_to_dict(given[0])
    assert (info["keepalives_interval"], info["tcp_user_timeout"]) == ("10", "60000")
    assert info["keepalives_idle"] == "7", "what the URL says stays"


def test_a_database_without_a_store_is_left_as_it_is(url: str) -> None:
    with pytest.raises(StoreError, match="holds no store"):
        Store.open(url, writer=False)


def test_without_psycopg_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'wise-runtime\[postgres\]'"):
        Store.open("postgresql://nowhere")


def test_a_server_that_is_not_there_is_said() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open("postgresql:///x?host=/nowhere")
