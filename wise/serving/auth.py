"""Bearer tokens: hashed at rest, each with a scope and maybe an expiry, and the check of each request against them.

A token is 32 random bytes, so one SHA-256 of it is enough: it cannot be guessed. A line of the file holds a name, a
scope, the hash, and the expiry and the namespaces if there are any. All hashes are compared, in constant time, so that
the time of an answer does not reveal which tokens exist. A file that changes is read again.

A token that is bound to namespaces sees and changes only these. It cannot use routes of the whole store (versions,
metrics). Numbers of tickets, events and versions count over the whole store.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Callable, Collection, Coroutine, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote

from fastapi import Depends, Request, Response, Security
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from wise.errors import ConfigError, EditError, checked_namespace
from wise.memory.folder import write_private
from wise.serving.http_errors import DENIED, HTTPError
from wise.serving.middleware import check_structure

logger = logging.getLogger(__name__)

READER, EDITOR, ADMIN = "reader", "editor", "admin"
SCOPES = (READER, EDITOR, ADMIN)
"""Each includes those before it."""
_LINE = re.compile(
    r"(?P<name>[\w.@-]+) (?P<scope>\w+) (?P<digest>[0-9a-f]{64})"
    r"(?: (?!namespaces=)(?P<until>\S+))?(?: namespaces=(?P<namespaces>\S+))?"
)


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The holder of a token."""

    name: str
    scope: str
    until: datetime | None = None
    """When the token expires, with a time zone."""
    namespaces: frozenset[str] | None = None
    """Those that it is bound to; None is all of them."""

    def may(self, scope: str) -> bool:
        return SCOPES.index(self.scope) >= SCOPES.index(scope)

    def sees(self, namespace: str) -> bool:
        return self.namespaces is None or namespace in self.namespaces


_holder: ContextVar[Holder | None] = ContextVar("holder", default=None)
"""The holder of the token, in the context of a request."""


def sees(namespace: str) -> bool:
    """Whether the holder of this request's token may know of a namespace; outside of requests nothing is hidden."""
    holder = _holder.get()
    return holder is None or holder.sees(namespace)


def sees_all() -> bool:
    """Whether nothing of the store is hidden from the holder of this request's token."""
    holder = _holder.get()
    return holder is None or holder.namespaces is None


class Tokens:
    """The known tokens."""

    def __init__(self, holders: Iterable[tuple[Holder, str]]) -> None:
        """holders: each with the SHA-256 of its token, in hex."""
        self._holders = tuple(holders)
        self._file: Path | None = None
        self._stamp: tuple[int, ...] | None = None

    @classmethod
    def read(cls, file: Path) -> Tokens:
        """Raises ConfigError, naming the line, for a file that is not one of tokens, or has none."""
        stamp = _stamp(file)
        tokens = cls(_parse(file))
        if not tokens._holders:
            raise ConfigError(f"tokens {file}: holds none; make one with `wise token NAME --file {file}`")
        tokens._file, tokens._stamp = file, stamp
        return tokens

    @classmethod
    def of_owner(cls, *tokens: str) -> Tokens:
        """Tokens that are in no file; each allows everything."""
        return cls((Holder(name="owner", scope=ADMIN), token_digest(token)) for token in tokens)

    def holder(self, digest: str) -> Holder | None:
        """The holder of the token with this SHA-256, expired or not; None if it is not known. A file that has changed
        is read again; while it is missing or invalid, its previous content applies."""
        if self._file is not None and (stamp := _stamp(self._file)) != self._stamp:
            self._stamp = stamp
            try:
                self._holders = tuple(_parse(self._file))
            except ConfigError as error:
                logger.error("the file of tokens has changed and is not read: %s", error)
        matches = [holder for holder, holder_digest in self._holders if hmac.compare_digest(digest, holder_digest)]
        return matches[-1] if matches else None


def _stamp(file: Path) -> tuple[int, ...] | None:
    """Changes whenever the file does; None if it is missing."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _parse(file: Path) -> list[tuple[Holder, str]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"tokens {file}: {error}; make one with `wise token NAME --file {file}`") from error
    holders = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match["scope"] not in SCOPES:
            raise ConfigError(
                f"{file}:{number}: a name, one of {', '.join(SCOPES)}, a SHA-256 in hex, and at most a time and "
                "'namespaces=' were expected; `wise token` writes such lines"
            )
        time, spaces = match["until"], match["namespaces"]
        try:
            until = None if time is None else datetime.fromisoformat(time)
            names = None if spaces is None else [checked_namespace(unquote(space)) for space in spaces.split(",")]
        except EditError as error:
            raise ConfigError(f"{file}:{number}: {error}") from error
        except ValueError as error:
            raise ConfigError(f"{file}:{number}: {error}; a time is as 2030-01-31T12:00:00+00:00") from error
        if until is not None and until.tzinfo is None:
            until = until.replace(tzinfo=UTC)
        namespaces = None if names is None else frozenset(names)
        holder = Holder(name=match["name"], scope=match["scope"], until=until, namespaces=namespaces)
        holders.append((holder, match["digest"]))
    return holders


def token_digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def new_token() -> str:
    return secrets.token_urlsafe(32)


def token_line(
    name: str, scope: str, token: str, until: datetime | None = None, namespaces: Collection[str] = ()
) -> str:
    """The line of a token in a file; no namespaces are all of them. Raises ConfigError for what is not valid."""
    line = f"{name} {scope} {token_digest(token)}" + (f" {until.isoformat(timespec='seconds')}" if until else "")
    if _LINE.fullmatch(line) is None or scope not in SCOPES:
        raise ConfigError(
            f"{name!r} with scope {scope!r}: letters, digits, '.', '@', '_' and '-' make up a name, and a scope is one "
            f"of {', '.join(SCOPES)}"
        )
    try:
        spaces = sorted({checked_namespace(space) for space in namespaces})
    except EditError as error:
        raise ConfigError(f"--namespace: {error}") from error
    return line + (f" namespaces={','.join(quote(space, safe='') for space in spaces)}" if spaces else "")


def write_token(file: Path, token: str) -> None:
    """Writes a token to a file of its own, which only its owner can read at any moment."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    write_private(file, f"{token}\n".encode())


def add_token_line(file: Path, line: str) -> None:
    """Appends to a file of tokens, which only its owner can read at any moment.

    Raises ConfigError, also for a file with other content, and for a path that is no file.
    """
    if file.exists():
        if not file.is_file():
            raise ConfigError(f"tokens {file}: is no file; name one that can be written")
        _parse(file)
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with open(handle, "r+b") as stream:
            os.fchmod(handle, 0o600)
            end = stream.seek(0, os.SEEK_END)
            whole = end == 0 or (stream.seek(end - 1), stream.read(1))[1] == b"\n"
            stream.write((b"" if whole else b"\n") + line.encode() + b"\n")
    except OSError as error:
        raise ConfigError(f"tokens {file}: {error}; name a file that can be written") from error


# -- dependencies of routes -------------------------------------------------------------------------

Credentials = Annotated[
    HTTPAuthorizationCredentials | None,
    Security(HTTPBearer(auto_error=False, description="A token of `wise token`.")),
]


class Access:
    """The token that let a request in. A stream checks repeatedly whether the token is still valid."""

    def __init__(self, tokens: Tokens, token: str | None, scope: str, *, whole: bool) -> None:
        """Raises HTTPError if the token lacks this scope, or, with `whole`, is bound to namespaces."""
        self._tokens, self._scope, self._whole = tokens, scope, whole
        self._digest = None if token is None else token_digest(token)
        self.holder = self._current()

    def check(self) -> None:
        """Raises HTTPError if the token has expired, was removed from the file, or has other rights by now."""
        if self._current() != self.holder:
            raise _unauthorized(f"the token of {self.holder.name} was changed; connect again", "changed_api_key")

    def _current(self) -> Holder:
        holder = None if self._digest is None else self._tokens.holder(self._digest)
        if self._digest is None:
            raise _unauthorized("no token was given; send the header 'Authorization: Bearer TOKEN'", "invalid_api_key")
        if holder is None:
            raise _unauthorized("the token is not known here; check it", "invalid_api_key")
        if holder.until is not None and holder.until <= datetime.now(UTC):
            when = holder.until.isoformat(timespec="seconds")
            raise _unauthorized(f"the token of {holder.name} expired at {when}; have a new one made", "expired_api_key")
        if not holder.may(self._scope):
            why, code = f"has the scope {holder.scope}, and this needs {self._scope}", "insufficient_scope"
        elif self._whole and holder.namespaces is not None:
            why, code = "is bound to namespaces, and this is of the whole store", "bound_to_namespaces"
        else:
            return holder
        raise HTTPError(HTTPStatus.FORBIDDEN, f"the token of {holder.name} {why}", type=DENIED, code=code)


def _unauthorized(message: str, code: str) -> HTTPError:
    headers = {"WWW-Authenticate": "Bearer"}
    return HTTPError(HTTPStatus.UNAUTHORIZED, message, type=DENIED, code=code, headers=headers)


Check = Callable[[Request], Holder | None]
_CHECKS: dict[object, Check] = {}
"""The check of each dependency of this file."""


def requires(
    scope: str, *, whole: bool = True, unless_open: bool = False
) -> Callable[[Request, HTTPAuthorizationCredentials | None], Coroutine[Any, Any, Holder | None]]:
    """A dependency that gives the holder of the request's token. A route that has it is an `AuthorizedRoute`, which
    refuses a token without this scope.

    whole: it also refuses a token that is bound to namespaces. A route without it must hide what `sees` excludes.
    unless_open: it needs no token if `open_metrics` is set.
    """

    def check(request: Request) -> Holder | None:
        service = request.app.state.service
        if unless_open and service.settings.open_metrics:
            return None
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        bearer = token.strip() if kind.lower() == "bearer" and token.strip() else None
        access = Access(service.tokens, bearer, scope, whole=whole)
        request.state.access, request.state.holder = access, access.holder.name
        _holder.set(access.holder)
        return access.holder

    async def authorized_holder(request: Request, _: Credentials) -> Holder | None:
        holder: Holder | None = request.state.checked[check]
        return holder

    _CHECKS[authorized_holder] = check
    return authorized_holder


def _checks(dependant: Dependant) -> list[Check]:
    checks = [_CHECKS[dependant.call]] if dependant.call in _CHECKS else []
    return checks + [check for part in dependant.dependencies for check in _checks(part)]


class AuthorizedRoute(APIRoute):
    """Checks the token first: FastAPI itself reads and parses the body before it calls a dependency."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, checks, has_body = super().get_route_handler(), _checks(self.dependant), self.body_field is not None

        async def handle_authorized(request: Request) -> Response:
            request.state.checked = {check: check(request) for check in checks}
            if has_body:
                check_structure(await request.body())  # which the request keeps
            return await handle(request)

        return handle_authorized


def details_allowed(request: Request) -> bool:
    """Whether a request to a route that needs no token has one that may read the whole store."""
    try:
        _CHECKS[_reader](request)
    except HTTPError:
        return False
    return True


_reader = requires(READER)
Reader = Annotated[Holder, Depends(_reader)]
Admin = Annotated[Holder, Depends(requires(ADMIN))]
NamespaceReader = Annotated[Holder, Depends(requires(READER, whole=False))]
NamespaceEditor = Annotated[Holder, Depends(requires(EDITOR, whole=False))]
"""These two may be bound to namespaces."""
