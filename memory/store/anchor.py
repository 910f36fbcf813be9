"""Anchors: the head of a store's history, to be kept or published where those who may write the store cannot change it.

The events of a journal are a chain, so the number and the digest of one event stand for all before it. Whoever can
write a store could write its whole history anew, and it would be whole. An anchor from before that does not fit it
then. It is a small JSON object, which may be signed with an Ed25519 key of the operator's.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wise.errors import ConfigError, StoreError
from wise.memory.artifact import digest_of_json
from wise.memory.store.backends.base import Backend, Scan
from wise.memory.store.edit_request import now

FORMAT = "wise-anchor"
SCHEMA_VERSION = 1
MOST_BYTES = 65_536
"""Of an anchor or a key."""


@dataclass(frozen=True, kw_only=True)
class Anchor:
    event: int
    """The number of the last event; 0 where nothing had happened."""
    digest: str
    """Of that event, and through it of all before."""
    at: str
    """When the anchor was made; UTC."""
    key: str | None = None
    """The public key that it is signed with: Base64 of its 32 bytes."""

    @property
    def content(self) -> dict[str, Any]:
        return {"format": FORMAT, "schema_version": SCHEMA_VERSION, **asdict(self)}


def head(backend: Backend) -> Anchor:
    """The anchor of a store as it is now, not signed."""
    with backend.reading() as execute:
        rows = execute("SELECT number, digest FROM events ORDER BY number DESC LIMIT 1")
    number, digest = rows[0] if rows else (0, "")
    if type(number) is not int or not isinstance(digest, str):
        raise StoreError(f"{backend.place}: the last event is damaged; `wise store check` says how")
    return Anchor(event=number, digest=digest, at=now())


def write_anchor(anchor: Anchor, key: Path | None = None) -> str:
    """The anchor as JSON, signed with the private key in a PEM file if one is given.

    Raises ConfigError where that is no Ed25519 key, or cryptography is not installed.
    """
    if key is None:
        return json.dumps(anchor.content)
    private = _key(key, "private")
    signed = replace(anchor, key=base64.b64encode(private.public_key().public_bytes_raw()).decode())
    signature = base64.b64encode(private.sign(digest_of_json(signed.content).encode())).decode()
    return json.dumps(signed.content | {"signature": signature})


def read_anchor(file: Path, public_key: Path | None = None) -> Anchor:
    """The anchor in a file; its signature is verified where it has one.

    public_key: a PEM file; the anchor must be signed with this key.

    Raises StoreError where it is no anchor, its signature is wrong, or it is not signed with that key; ConfigError
    where a file cannot be read.
    """
    wanted = None if public_key is None else _key(public_key, "public")
    content = _read(file)
    try:
        data = json.loads(content)
        if (data.pop("format"), data.pop("schema_version")) != (FORMAT, SCHEMA_VERSION):
            raise ValueError(f"expected format {FORMAT!r} of schema {SCHEMA_VERSION}")
        signature = data.pop("signature", None)
        anchor = Anchor(**data)
        if type(anchor.event) is not int or not isinstance(anchor.digest, str) or not 0 <= anchor.event < 2**62:
            raise ValueError(f"event {anchor.event!r:.40}")
        if anchor.key is not None or signature is not None:
            _verify(anchor, signature)
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        problem = f"is no anchor that this release reads ({str(error):.200})"
        raise StoreError(f"{file} {problem}; give what `wise store anchor` wrote") from error
    if wanted is not None and anchor.key != base64.b64encode(wanted.public_bytes_raw()).decode():
        reason = "signed with another key" if anchor.key else "not signed"
        raise StoreError(f"{file} is {reason}; give the anchor that was signed with the key of {public_key}")
    return anchor


def anchor_problems(anchor: Anchor, scan: Scan) -> list[str]:
    """Whether a history goes on from an anchor. That it is one chain up to there is checked elsewhere."""
    if anchor.event == 0:
        return []
    rows = list(scan("SELECT digest FROM events WHERE number = ?", anchor.event))
    if not rows:
        [(last,)] = scan("SELECT COALESCE(MAX(number), 0) FROM events")
        ends = f"it ends at event {last}, and the anchor of {anchor.at} is of event {anchor.event}"
        return [f"the history was shortened: {ends}"]
    if rows != [(anchor.digest,)]:
        return [f"the history was rewritten: event {anchor.event} is not that of the anchor of {anchor.at}"]
    return []


def _verify(anchor: Anchor, signature: object) -> None:
    """Raises ValueError where the signature is not that of the anchor's own key."""
    _, ed25519 = _cryptography()
    from cryptography.exceptions import InvalidSignature

    key = ed25519.Ed25519PublicKey.from_public_bytes(base64.b64decode(str(anchor.key), validate=True))
    try:
        key.verify(base64.b64decode(str(signature), validate=True), digest_of_json(anchor.content).encode())
    except InvalidSignature:
        raise ValueError("the signature is wrong: it was changed after it was signed") from None


def _key(file: Path, kind: str) -> Any:
    """The Ed25519 key in a PEM file. kind: `private` or `public`. Raises ConfigError where it holds none."""
    serialization, ed25519 = _cryptography()
    data = _read(file)
    try:
        if kind == "private":
            key = serialization.load_pem_private_key(data, password=None)
        else:
            key = serialization.load_pem_public_key(data)
        if not isinstance(key, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey):
            raise ValueError(f"it is a {type(key).__name__}")
    except (TypeError, ValueError) as error:
        make = "openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out key.pub"
        raise ConfigError(f"{file} is no {kind} Ed25519 key in PEM ({error!s:.120}); make one: {make}") from error
    return key


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}; check the path") from error
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{file}: is larger than an anchor or a key can be ({MOST_BYTES} bytes)")
    return data


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise ConfigError("signed anchors need cryptography: pip install 'wise-runtime[sign]'") from None
    return serialization, ed25519
