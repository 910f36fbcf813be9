"""Bearer tokens: hashed at rest, each with a scope and maybe an expiry, and the check of each request against them.

A token is 32 random bytes, so one SHA-256 of it is enough: it cannot be guessed. A line of the file holds a name, a
scope, the hash, and the expiry if there is one. All hashes are compared, in constant time, so that the time of an
answer does not tell which tokens exist. A file that changes is read again.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from wise.errors import ConfigError
from wise.serving.http_errors import DENIED, HTTPError

logger = logging.getLogger(__name__)

READER, EDITOR, ADMIN = "reader", "editor", "admin"
SCOPES = (READER, EDITOR, ADMIN)
"""Each includes those before it."""
_LINE = re.compile(r"(?P<name>[\w.@-]+) (?P<scope>\w+) (?P<digest>[0-9a-f]{64})(?: (?P<until>\S+))?")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The holder of a token."""

    name: str
    scope: str
    until: datetime | None = None
    """When the token expires, with a time zone."""

    def may(self, scope: str) -> bool:
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


class Tokens:
    """The known tokens."""

    def __init__(self, known: Iterable[tuple[Holder, str]]) -> None:
        """known: holders with the SHA-256 of their tokens, in hex."""
        self._known = tuple(known)
        self._file: Path | None = None
        self._stamp: tuple[int, ...] | None = None

    @classmethod
    def read(cls, file: Path) -> Tokens:
        """Raises ConfigError, naming the line, for a file that is not one of tokens, or has none."""
        stamp = _stamp(file)
        tokens = cls(_parse(file))
        if not tokens._known:
            raise ConfigError(f"tokens {file}: holds none; make one with `wise token NAME --file {file}`")
        tokens._file, tokens._stamp = file, stamp
        return tokens

    def holder(self, token: str) -> Holder | None:
        """The holder of a token, expired or not; None if it is not known."""
        self._refresh()
        digest = token_digest(token)
        found = None
        for holder, known in self._known:
            if hmac.compare_digest(digest, known):
                found = holder
        return found

    def _refresh(self) -> None:
        """Reads the file again if it has changed. While it is missing or invalid, its previous content applies."""
        if self._file is None or _stamp(self._file) == self._stamp:
            return
        self._stamp = _stamp(self._file)
        try:
            self._known = tuple(_parse(self._file))
        except ConfigError as error:
            logger.error("the file of tokens has changed and is not read: %s", error)


def _stamp(file: Path) -> tuple[int, ...] | None:
    """Changes whenever the file does; None if it is missing."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _parse(file: Path) -> list[tuple[Holder, str]]:
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


def token_digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def new_token() -> str:
    return secrets.token_urlsafe(32)


def token_line(name: str, scope: str, token: str, until: datetime | None = None) -> str:
    """The line of a token in a file. Raises ConfigError for a name or a scope that is not valid."""
    line = f"{name} {scope} {token_digest(token)}" + (f" {until.isoformat(timespec='seconds')}" if until else "")
    if _LINE.fullmatch(line) is None or scope not in SCOPES:
        raise ConfigError(
            f"{name!r} with scope {scope!r}: letters, digits, '.', '@', '_' and '-' make up a name, and a scope is one "
            f"of {', '.join(SCOPES)}"
        )
    return line


# -- dependencies of routes -------------------------------------------------------------------------

Credentials = Annotated[
    HTTPAuthorizationCredentials | None,
    Security(HTTPBearer(auto_error=False, description="A token of `wise token`.")),
]


def requires(scope: str) -> Callable[[Request, HTTPAuthorizationCredentials | None], Holder]:
    """A dependency that gives the holder of the request's token, and refuses one without this scope."""

    def authorized(request: Request, given: Credentials) -> Holder:
        tokens: Tokens = request.app.state.service.tokens
        found = None if given is None else tokens.holder(given.credentials)
        if found is None:
            why = "no token was given" if given is None else "the token is not known"
            raise _unauthorized(f"{why}; send the header 'Authorization: Bearer TOKEN'", "invalid_api_key")
        if found.until is not None and found.until <= datetime.now(UTC):
            when = found.until.isoformat(timespec="seconds")
            raise _unauthorized(f"the token of {found.name} expired at {when}; have a new one made", "expired_api_key")
        if not found.may(scope):
            raise HTTPError(
                HTTPStatus.FORBIDDEN,
                f"the token of {found.name} has the scope {found.scope}, and this needs {scope}",
                type=DENIED,
                code="insufficient_scope",
            )
        request.state.holder = found.name
        return found

    return authorized


def _unauthorized(message: str, code: str) -> HTTPError:
    headers = {"WWW-Authenticate": "Bearer"}
    return HTTPError(HTTPStatus.UNAUTHORIZED, message, type=DENIED, code=code, headers=headers)


def requires_metrics(request: Request, given: Credentials) -> None:
    """A dependency that lets in readers, or anyone if `open_metrics` is set."""
    if not request.app.state.service.settings.open_metrics:
        requires(READER)(request, given)


Reader = Annotated[Holder, Depends(requires(READER))]
Editor = Annotated[Holder, Depends(requires(EDITOR))]
Admin = Annotated[Holder, Depends(requires(ADMIN))]
