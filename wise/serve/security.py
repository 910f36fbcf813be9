"""Who may do what: bearer tokens, hashed at rest, each with a scope.

A token is 32 random bytes, so one SHA-256 of it is enough: there is nothing to guess. A line of the file holds a name,
a scope and that hash. Every hash is compared, in constant time, so that neither the time nor the answer tells which
tokens there are.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wise.errors import ConfigError

READER, EDITOR, ADMIN = "reader", "editor", "admin"
SCOPES = (READER, EDITOR, ADMIN)
"""Each may do what those before it may."""
_LINE = re.compile(r"(?P<name>[\w.@-]+) (?P<scope>\w+) (?P<digest>[0-9a-f]{64})")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Whose token it is."""

    name: str
    scope: str

    def may(self, scope: str) -> bool:
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


class Tokens:
    """The tokens that are known."""

    def __init__(self, known: Iterable[tuple[Holder, str]]) -> None:
        """known: holders with the SHA-256 of their tokens, in hex."""
        self._known = tuple(known)

    @classmethod
    def read(cls, file: Path) -> Tokens:
        """Raises ConfigError, naming the line, for a file that is none of ours."""
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
                    f"{file}:{number}: a name, one of {', '.join(SCOPES)}, and a SHA-256 in hex were expected; "
                    "`wise token` writes such lines"
                )
            known.append((Holder(name=match["name"], scope=match["scope"]), match["digest"]))
        if not known:
            raise ConfigError(f"tokens {file}: holds none; make one with `wise token NAME --file {file}`")
        return cls(known)

    def holder(self, token: str) -> Holder | None:
        """Whose it is; None where it is not known."""
        digest = digest_of(token)
        found = None
        for holder, known in self._known:
            if hmac.compare_digest(digest, known):
                found = holder
        return found


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def new_token() -> str:
    return secrets.token_urlsafe(32)


def line_of(name: str, scope: str, token: str) -> str:
    """The line that stands for a token. Raises ConfigError for a name or a scope that cannot stand there."""
    line = f"{name} {scope} {digest_of(token)}"
    if _LINE.fullmatch(line) is None or scope not in SCOPES:
        raise ConfigError(
            f"{name!r} with scope {scope!r}: letters, digits, '.', '@', '_' and '-' make up a name, and a scope is one "
            f"of {', '.join(SCOPES)}"
        )
    return line
