"""Does to a store, a memory and a pack what has broken them before, and reports what happened.

    python scripts/attack_store.py             # all attacks
    python scripts/attack_store.py c01 c08     # those whose names begin so
    python scripts/attack_store.py --into docs/results/service.json now     # puts them into a file of runs
    python scripts/attack_store.py --list

Each attack is a function here, and gets an empty folder. With PYTHONPATH set to another checkout, that one is attacked.
One line for each attack goes to stdout; the last line is one JSON object. The exit code is 1 if an attack succeeded.
"""

from __future__ import annotations

import json
import lzma
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attacks
import torch
from attacks import AttackError
from soak_store import BASE, CONFIG, reseal, seal, written

from wise.edits import Edit
from wise.errors import WiseError
from wise.memory.artifact import load_memory, save_memory
from wise.memory.store.store import Store

FLIPS = 400
TICKETS = 20_000
PATIENCE = 5
SLOWEST = 0.2
"""Seconds of CPU that ten lines of the log may take."""
JOURNAL = "journal.sqlite3"


def learn(store: Store, edits: list[Edit], **fields: Any) -> None:
    """Commits all that is queued, after `edits`."""
    if edits:
        store.enqueue(edits, **fields)
    batch, current = store.claim(), store.read()
    state = written([ticket.edit for ticket in batch], current.state)
    outcomes = {ticket.edit.id: {"status": "verified", "answer": ticket.edit.target} for ticket in batch}
    store.commit(batch, state, parent=current.version, config=CONFIG, base=BASE, outcomes=outcomes)


def edit(name: str, **fields: Any) -> Edit:
    return Edit(**{"id": name, "prompt": f"prompt of {name}", "target": "here", **fields})


def history(folder: Path) -> None:
    with Store.open(folder) as store:
        learn(store, [edit("a", namespace="geo", author="me"), edit("b")], key="call")
        learn(store, [edit("c")])
        store.delete(["b"], reason="wrong")
        store.rollback(1)
        store.enqueue([edit("d")])
        store.commands.enqueue("delete", {"edit_ids": ["a"]}, 3600)


def problems(folder: Path, **how: Any) -> tuple[str, ...]:
    try:
        with Store.open(folder, writer=False) as store:
            return store.check(**how).problems
    except WiseError as error:
        return (str(error),)


def altered(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / JOURNAL)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def held() -> float:
    """MiB of memory that this process has; `peak` counts from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """MiB of memory that this process has had at the most."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))


def refused(work: Callable[[], object], what: str) -> None:
    """Raises AttackError unless `work` raises an error of ours."""
    try:
        work()
    except WiseError:
        return
    except Exception as error:
        raise AttackError(f"{what}: a raw {type(error).__name__}: {str(error)[:100]}") from error
    raise AttackError(f"{what} was accepted")


def c01_flips(folder: Path) -> str:
    """A bit that is flipped in any file must be found, or change nothing; the checker must not crash."""
    source, copy = folder / "source", folder / "copy"
    history(source)
    shutil.copytree(source, copy)
    files = [file for file in source.rglob("*") if file.is_file() and file.stat().st_size]
    rng = random.Random(20)
    data = (source / JOURNAL).read_bytes()
    words = (b"geo", b"call", b"edit_ids", b"delete")
    spots = [(JOURNAL, at.start()) for word in words for at in re.finditer(word, data)]
    drawn = [rng.choice([source / JOURNAL, rng.choice(files)]).relative_to(source).as_posix() for _ in range(FLIPS)]
    spots += [(name, rng.randrange((source / name).stat().st_size)) for name in drawn]
    found, before = 0, _rows(source)
    for name, at in spots:
        changed = bytearray((source / name).read_bytes())
        changed[at] ^= 1 << rng.randrange(6)
        (copy / name).write_bytes(changed)
        try:
            seen = bool(problems(copy))
        except Exception as error:
            raise AttackError(f"byte {at} of {name}: a raw {type(error).__name__}") from error
        if not seen and _rows(copy) != before:
            raise AttackError(f"byte {at} of {name} was changed, and the store is whole")
        found += seen
        shutil.copy(source / name, copy / name)
    return f"{len(spots)} flips, {found} found, the others changed nothing"


def _rows(folder: Path) -> list[Any]:
    with closing(sqlite3.connect(folder / JOURNAL)) as connection:
        connection.text_factory = bytes
        names = ("sqlite_master", "tickets", "events", "versions", "commands", "migrations")
        return [connection.execute(f"SELECT * FROM {name}").fetchall() for name in names]


def c01_forgeries(folder: Path) -> str:
    """An index that is dropped and a command that is altered must be found."""
    history(folder / "source")
    for number, statement in enumerate((
        "DROP INDEX tickets_under_way",
        "UPDATE commands SET arguments = replace(arguments, '\"a\"', '\"c\"')",
        "UPDATE tickets SET namespace = 'other' WHERE number = 1",
        "UPDATE tickets SET edit_id = 'z' WHERE number = 1",
    )):
        shutil.copytree(folder / "source", folder / str(number))
        altered(folder / str(number), statement)
        if not problems(folder / str(number)):
            raise AttackError(f"{statement}: the store is whole")
    return "4 forgeries found"


def c01_rewritten(folder: Path) -> str:
    """A history that was cut short, or written anew with digests that fit, must be found by an anchor."""
    history(folder / "source")
    shutil.copytree(folder / "source", folder / "short")
    with Store.open(folder / "source") as store:
        store.enqueue([edit("e")])
        anchor = store.anchor()
    with Store.open(folder / "anew") as store:
        for number in range(10):
            learn(store, [edit(f"x{number}")])
    for name in ("short", "anew"):
        if problems(folder / name) or not problems(folder / name, anchor=anchor):
            raise AttackError(f"{name}: not found by the anchor")
    return "found: shortened, rewritten"


def c02_two_writers(folder: Path) -> str:
    """A lock file that is removed and made anew must not admit a second writer beside the first."""
    with Store.open(folder / "store") as first:
        learn(first, [edit("a")])
        (folder / "store" / "writer.lock").unlink()
        (folder / "store" / "writer.lock").touch()
        try:
            second = Store.open(folder / "store")
        except WiseError:
            return "the second writer is refused"
        with second:
            second.enqueue([edit("b")])
            second.claim()
            refused(lambda: first.delete(["a"]), "a change by the first writer beside the second")
    return "the first writer may write no more"


def c03_modes_and_readers(folder: Path) -> str:
    """Files must be their owner's, and a reader's open transaction must not hold up the writer for long."""
    before = os.umask(0o022)
    try:
        history(folder / "store")
    finally:
        os.umask(before)
    for path in (folder / "store").rglob("*"):
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise AttackError(f"{path.name} has mode {stat.S_IMODE(path.stat().st_mode):o}")
    reader = sqlite3.connect(folder / "store" / JOURNAL, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM tickets").fetchall()
    begun = time.monotonic()
    with Store.open(folder / "store", writer=False) as store:
        refused(lambda: store.enqueue([edit("e")]), "writing beside a reader")
    spent = time.monotonic() - begun
    reader.close()
    if spent > 15:
        raise AttackError(f"the writer was held up for {spent:.0f} s")
    return f"modes are those of the owner; the writer was held up for {spent:.0f} s and told why"


def c04_copies(folder: Path) -> str:
    """A backup of a store that is being written must be whole."""
    Store.open(folder / "store").close()
    child = os.fork()
    if not child:
        with suppress(BaseException), Store.open(folder / "store") as store:
            for number in range(100_000):
                learn(store, [edit(str(number))])
                store.gc(keep=3)
        os._exit(1)
    try:
        for number in range(8):
            with Store.open(folder / "store", writer=False) as store:
                store.backup(folder / str(number))
            if found := problems(folder / str(number)):
                raise AttackError(f"backup {number} is not whole: {found[0]}")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    return "8 backups, all whole"


def c05_many_tickets(folder: Path) -> str:
    """Ten lines of the log must not take the time of the whole journal, nor a check after a check."""
    from typer.testing import CliRunner

    from wise.cli.app import app

    place = str(folder / "store")
    history(folder / "small")
    for command in ("log", "check"):  # which imports what it needs
        CliRunner().invoke(app, ["store", command, str(folder / "small")])
    with Store.open(place) as store:
        for first in range(0, TICKETS, 1000):
            store.enqueue([edit(f"e{first + number}") for number in range(1000)])
    begun = time.process_time()
    CliRunner().invoke(app, ["store", "log", place, "--limit", "10"])
    spent = time.process_time() - begun
    checks = []
    for _ in range(2):
        begun = time.process_time()
        CliRunner().invoke(app, ["store", "check", place])
        checks.append(time.process_time() - begun)
    seen = f"{TICKETS} tickets: log --limit 10 {spent:.2f} s, check {checks[0]:.1f} s, again {checks[1]:.1f} s of CPU"
    if spent > SLOWEST or checks[1] > checks[0] / 2:
        raise AttackError(seen)
    return seen


def memory(folder: Path) -> Path:
    save_memory(folder, config=CONFIG, state=written([edit("a"), edit("b")]), base=BASE)
    return folder


def c06_header(folder: Path) -> str:
    """A header of 90 MB must be refused before it is parsed."""
    made = memory(folder / "memory")
    names = {f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(1_200_000)}
    text = json.dumps({"__metadata__": {"format": "wise-memory"}, **names}).encode()[:99_000_000]
    (made / "memory.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    reseal(made)
    del names, text
    before, begun = held(), time.perf_counter()
    refused(lambda: load_memory(made), "the header")
    spent, grown = time.perf_counter() - begun, peak() - before
    if spent > 2 or grown > 200:
        raise AttackError(f"refused after {spent:.0f} s and {grown:.0f} MiB")
    return f"refused after {spent:.1f} s and {grown:.0f} MiB"


def c06_values(folder: Path) -> str:
    """Keys that are no unit vectors, scores of any gate and values without bounds must be refused."""
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "keys of length 1e4": lambda t: t.update(keys=t["keys"] * 1e4),
        "scores of -1": lambda t: t.update({"slots.scores": t["slots.scores"] * 0 - 1}),
        "scores of 0": lambda t: t.update({"slots.scores": t["slots.scores"] * 0}),
        "thresholds of -1": lambda t: t.update({"key_space.thresholds": t["key_space.thresholds"] * 0 - 1}),
        "values x 1e30": lambda t: t.update({name: t[name] * 1e30 for name in t if name.endswith("/values")}),
        "ids beyond the vocabulary": lambda t: t.update({n: t[n] + 10**6 for n in t if n.endswith("/ids")}),
        "places as floats": lambda t: t.update({"slots.edits": t["slots.edits"].double()}),
        "a size of 2^40": lambda t: t.update({"key_space.size": torch.tensor(2**40)}),
        "counts of -1": lambda t: t.update(key_counts=t["key_counts"] * 0 - 1),
    }
    for number, (what, change) in enumerate(changes.items()):
        made = memory(folder / str(number))
        reseal(made, tensors=change)
        refused(partial(load_memory, made), what)
    return f"{len(changes)} refused"


def c09_settings(folder: Path) -> str:
    """Settings and fields of a fingerprint beyond their range must be refused."""
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "seed 10^400": lambda m: m["config"].update(seed=10**400),
        "seed 2^65": lambda m: m["config"].update(seed=2**65),
        "max_steps 2^40": lambda m: m["config"].update(max_steps=2**40),
        "quantized infinite": lambda m: m["base"].update(quantized=[float("inf")]),
        "sample 10^400": lambda m: m["base"].update(sample=[10**400]),
        "kinds a number": lambda m: m.update(kinds=7),
        "files a list": lambda m: m.update(files=[]),
        "config a list": lambda m: m.update(config=[]),
    }
    for number, (what, change) in enumerate(changes.items()):
        made = memory(folder / str(number))
        reseal(made, change)
        refused(partial(load_memory, made), what)
    return f"{len(changes)} refused"


def c08_packs(folder: Path) -> str:
    """A ticket of a pack that is not of our kind must be refused, before anything is written."""
    with Store.open(folder / "source") as store:
        learn(store, [edit("a")])
    wrong: list[Any] = [
        {"verified": "x"}, {"verified": ["x"]}, [], "x", None, {"reason": 7}, {"valid_from": []}, {"more": 1},
        {"verified": {"holds": "all"}}, {"verified": {"loss": float("nan")}}, {"verified": {"answer": "\ud800"}},
        {"verified": {"answer": "x" * 10**7}},
    ]
    for number, ticket in enumerate(wrong):
        with Store.open(folder / "source", writer=False) as store:
            store.export_pack(folder / str(number))
        seal(folder / str(number) / "tickets.json", partial(_with_ticket, ticket))
        with Store.open(folder / f"target {number}") as store:
            refused(partial(store.import_pack, folder / str(number)), f"{ticket!r:.60}")
            if store.journal.tickets():
                raise AttackError(f"{ticket!r:.60}: something was written")
    return f"{len(wrong)} refused, nothing written"


def _with_ticket(ticket: Any, data: dict[str, Any]) -> None:
    data["tickets"]["a"] = ticket


def c08_shown(folder: Path) -> str:
    """Whatever lies in the journal, edits can be listed."""
    from wise.serving.schemas import EditView

    history(folder / "store")
    altered(
        folder / "store",
        "UPDATE tickets SET verified = '\"x\"' WHERE number = 1",
        "UPDATE tickets SET edit = '[]' WHERE number = 2",
        "UPDATE tickets SET verified = '{\"loss\": NaN, \"answer\": \"\\ud800\"}' WHERE number = 3",
    )
    with Store.open(folder / "store", writer=False) as store:
        shown = [EditView.of(ticket, {}).model_dump_json() for ticket in store.journal.tickets()]
        for text in shown:
            json.dumps(json.loads(text), allow_nan=False, ensure_ascii=False).encode()
    return f"{len(shown)} edits listed"


def c10_files(folder: Path) -> str:
    """Files that are too large, or no files, must be refused before they are read."""
    before = held()
    made = memory(folder / "large")
    (made / "wise_config.json").write_bytes(b"[" + b"0," * 75_000_000 + b"0]")
    refused(lambda: load_memory(made), "a wise_config.json of 150 MB")
    for number, target in enumerate(("/dev/zero", "/etc/hostname", "pipe")):
        for name in ("wise_config.json", "edits.jsonl", "memory.safetensors"):
            made = memory(folder / f"{number} {name}")
            (made / name).unlink()
            if target == "pipe":
                os.mkfifo(made / name)
            else:
                (made / name).symlink_to(target)
            if name != "edits.jsonl" or target != "/dev/zero":
                _load_within(made, f"{name} is {target}")
    grown = peak() - before
    if grown > 300:
        raise AttackError(f"refused after {grown:.0f} MiB")
    return f"10 refused within {grown:.0f} MiB"


def c10_packed(folder: Path) -> str:
    """A packed file of edits that holds a lot must be refused in little memory."""
    from wise.formats.edit_file import read_records

    file = folder / "edits.jsonl.xz"
    with lzma.open(file, "wb", preset=1) as stream:
        for _ in range(600):
            stream.write(b" " * 1_000_000)
    before = held()
    refused(lambda: read_records(file), "an .xz that holds 600 MB")
    grown = peak() - before
    if grown > 100:
        raise AttackError(f"refused after {grown:.0f} MiB")
    return f"{file.stat().st_size // 1000} KB that hold 600 MB: refused within {grown:.0f} MiB"


def _load_within(folder: Path, what: str) -> None:
    """Loads a memory, which must be refused, in a process that may take `PATIENCE` seconds and 1 GiB more."""
    child = os.fork()
    if not child:
        code = 1
        with suppress(BaseException):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + 2**30,) * 2)
            signal.alarm(PATIENCE)
            refused(lambda: load_memory(folder), what)
            code = 0
        os._exit(code)
    _, status = os.waitpid(child, 0)
    if status:
        raise AttackError(f"{what}: not refused within {PATIENCE} s")


def c07_erasure(folder: Path) -> str:
    """What is erased must be in no file, as text or as numbers."""
    from wise.memory.store.edit_request import EditRequest

    secret = edit("secret", prompt="Zanzibar's Émile is", target="Quetzalcoatl", subject="Zanzibar")
    words = ("Zanzibar", "Émile", "Quetzalcoatl", "Zebedee", "Ypsilanti", "Kierkegaard")
    with Store.open(folder / "store") as store:
        learn(store, [edit("a")])
        store.enqueue([EditRequest(edit=secret, reason="Zebedee")], key="Ypsilanti")
        learn(store, [edit("b")])
        slots = store.read().state.slots
        values = next(s for s in slots if s.edit_ids == ("secret",)).tensors()["values"].numpy().tobytes()
        store.delete(["secret"], reason="Kierkegaard")
        store.gc(keep=1)
        store.erase(["secret"])
        if store.check().problems:
            raise AttackError("the store is not whole after it")
    left = _said(folder, words, values)
    if left:
        raise AttackError(f"still there: {left}")
    return f"{len(words)} words and the tensor are in no file, and the store is whole"


def _said(folder: Path, words: tuple[str, ...], values: bytes) -> list[str]:
    data = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
    spelled = {
        word: {text.encode(code) for text in (word, json.dumps(word)[1:-1]) for code in ("utf-8", "utf-16-le")}
        for word in words
    }
    found = [word for word, forms in spelled.items() if any(form in each for form in forms for each in data)]
    return found + (["values"] if any(values in each for each in data) else [])


def b08_clock(folder: Path) -> str:
    """A clock that was ahead for a moment must not end an edit for good, nor date what comes later."""
    from wise.memory.store import journal
    from wise.memory.store.edit_request import EditRequest

    def look(store: Store) -> None:
        over = [ticket.edit.id for ticket in store.expired()]
        if over:
            with suppress(TypeError):
                store.delete(over, expired=True)
                over = []
            if over:
                store.delete(over)
        batch = store.claim()
        if batch:
            store.requeue(batch, why="as it was")
            learn(store, [])

    original = journal.now
    with Store.open(folder / "store") as store:
        store.enqueue([EditRequest(edit=edit("a"), valid_until="2099-01-01")])
        learn(store, [])
        journal.now = lambda: "2150-01-01T00:00:00.000000+00:00"
        look(store)
        journal.now = original
    with Store.open(folder / "store") as store:
        look(store)
        look(store)
        status = store.journal.tickets(edit_id="a")[0].status
        at = store.log()[-1].at[:4]
    if status != "live" or at >= "2100":
        raise AttackError(f"the edit is {status}, and the last event is dated {at}")
    return "the edit is live again after a restart, and later events have the date of today"


def in_a_folder(attack: Callable[[Path], str]) -> str:
    """Does it in an empty folder, in memory where there is such."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        return attack(Path(folder))


def main() -> int:
    return attacks.main(__doc__, attacks.attacks_of(globals(), in_a_folder))


if __name__ == "__main__":
    raise SystemExit(main())
