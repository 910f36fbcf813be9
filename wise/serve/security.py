"""Who may do what: bearer tokens, hashed at rest, each with a scope.

A token is 32 random bytes, so one SHA-256 of it is enough: there is nothing to guess. A line of the file holds a name,
a scope, that hash, and the time at which the token expires, if it does. Every hash is compared, in constant time, so
that neither the time nor the answer tells which tokens there are. A file that changes is read again: a token whose line
was taken out is not known any more.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from wise.errors import ConfigError

logger = logging.getLogger(__name__)

READER, EDITOR, ADMIN = "reader", "editor", "admin"
SCOPES = (READER, EDITOR, ADMIN)
"""Each may do what those before it may."""
_LINE = re.compile(r"(?P<name>[\w.@-]+) (?P<scope>\w+) (?P<digest>[0-9a-f]{64})(?: (?P<until>\S+))?")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Whose token it is."""

    name: str
    scope: str
    until: datetime | None = None
    """When it expires, with a time zone."""

    @property
    def expired(self) -> datetime | None:
        """When it did, where it has."""
        return self.until if self.until is not None and self.until <= datetime.now(UTC) else None

    def may(self, scope: str) -> bool:
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


class Tokens:
    """The tokens that are known."""

    def __init__(self, known: Iterable[tuple[Holder, str]]) -> None:
        """known: holders with the SHA-256 of their tokens, in hex."""
        self._known = tuple(known)
        self._file: Path | None = None
        self._written: tuple[int, ...] | None = None

    @classmethod
    def read(cls, file: Path) -> Tokens:
        """Raises ConfigError, naming the line, for a file that is none of ours."""
        written = _written(file)
        tokens = cls(_held(file))
        if not tokens._known:
            raise ConfigError(f"tokens {file}: holds none; make one with `wise token NAME --file {file}`")
        tokens._file, tokens._written = file, written
        return tokens

    def holder(self, token: str) -> Holder | None:
        """Whose it is, expired or not; None where it is not known."""
        self._look()
        digest = digest_of(token)
        found = None
        for holder, known in self._known:
            if hmac.compare_digest(digest, known):
                found = holder
        return found

    def _look(self) -> None:
        """Reads the file again where it has changed; while it is not there or none of ours, what it said before holds.

        One without any token is ours: the last was taken out.
        """
        if self._file is None or _written(self._file) == self._written:
            return
        self._written = _written(self._file)
        try:
            self._known = tuple(_held(self._file))
        except ConfigError as error:
            logger.error("the file of tokens has changed and is not read: %s", error)


def _written(file: Path) -> tuple[int, ...] | None:
    """What tells whether a file has changed; None where it is not there."""
    try:
        told = file.stat()
    except OSError:
        return None
    return told.st_ino, told.st_mtime_ns, told.st_size


def _held(file: Path) -> list[tuple[Holder, str]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"tokens {file}: {error}; make one with `wise token NAME --file {file}`") from error
    known = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match["scope"] not in SCOPES:
            raise ConfigError(
                f"{file}:{number}: a name, one of {', '.join(SCOPES)}, a SHA-256 in hex, and at most a time were "
                "expected; `wise token` writes such lines"
            )
        try:
            until = None if match["until"] is None else datetime.fromisoformat(match["until"])
        except ValueError as error:
            raise ConfigError(f"{file}:{number}: {error}; a time is as 2030-01-31T12:00:00+00:00") from error
        if until is not None and until.tzinfo is None:
            until = until.replace(tzinfo=UTC)
        known.append((Holder(name=match["name"], scope=match["scope"], until=until), match["digest"]))
    return known


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def new_token() -> str:
    return secrets.token_urlsafe(32)


def line_of(name: str, scope: str, token: str, until: datetime | None = None) -> str:
    """The line that stands for a token, which expires at `until`.

    Raises ConfigError for a name or a scope that cannot stand there.
    """
    line = f"{name} {scope} {digest_of(token)}" + (f" {until.isoformat(timespec='seconds')}" if until else "")
    if _LINE.fullmatch(line) is None or scope not in SCOPES:
        raise ConfigError(
            f"{name!r} with scope {scope!r}: letters, digits, '.', '@', '_' and '-' make up a name, and a scope is one "
            f"of {', '.join(SCOPES)}"
        )
    return line
