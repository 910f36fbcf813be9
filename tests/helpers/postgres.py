"""A PostgreSQL server for the tests, where its programs are installed: in a folder of its own, on a socket alone."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stores import IN_MEMORY

DEBIAN = Path("/usr/lib/postgresql")


def _program(name: str) -> str:
    newest_first = sorted(DEBIAN.glob(f"*/bin/{name}"), reverse=True)
    found = next(map(str, newest_first), None) or shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name} here: install PostgreSQL (Debian: postgresql)")
    return found


class Server:
    """Starts and stops; `kill` gives it no time to end what it does."""

    def __init__(self, folder: Path) -> None:
        self.url = f"postgresql:///postgres?host={folder}&user=tester"
        self.data = folder / "data"
        self._folder = folder
        self._user = None
        if not os.getuid():  # PostgreSQL refuses to be run by root
            try:
                self._user = pwd.getpwnam("postgres").pw_name
            except KeyError:
                pytest.skip("PostgreSQL is not run by root, and there is no user 'postgres' here")
            shutil.chown(folder, self._user)
        self._run("initdb", "-D", str(self.data), "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()

    def start(self) -> None:
        # Without fsync: what is killed here is a process, and what it wrote stays with the system.
        options = f"-k {self._folder} -c listen_addresses= -c fsync=off -c log_min_messages=fatal"
        log = str(self._folder / "log")
        self._run("pg_ctl", "-D", str(self.data), "-w", "-l", log, "-o", options, "start")

    def kill(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [_program(program), *arguments], user=self._user, cwd=self._folder, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, env=os.environ | {"LC_ALL": "C.UTF-8"},
        )
        assert done.returncode == 0, done.stderr


@contextmanager
def postgres() -> Iterator[Server]:
    """A server that runs for the length of the block. Skips the test where none can."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'wise-runtime[postgres]'")
    _program("initdb")
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        server = Server(Path(folder))
        try:
            yield server
        finally:
            server.kill()


@contextmanager
def postgres_server() -> Iterator[str]:
    """The same, as its URL."""
    with postgres() as server:
        yield server.url


def end_sessions(url: str, *numbers: int) -> None:
    """Has the server end these sessions, or all, as it does where a machine or a network fails."""
    import psycopg

    others = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    with psycopg.connect(url, autocommit=True) as connection:
        for (number,) in connection.execute(f"SELECT pid {others}".encode()).fetchall():
            if number in numbers or not numbers:
                connection.execute("SELECT pg_terminate_backend(%s, 10000)", (number,))  # ms until it has ended


def emptied(url: str) -> None:
    """Takes a store away."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS wise CASCADE")
