"""Text that leaves the process: without secrets, without control characters, and JSON that stays in its line.

Texts of edits and answers come from strangers. A terminal obeys control characters in them, and clients that split a
stream by lines take U+0085, U+2028 and U+2029 for ends of lines. Addresses may hold passwords and tokens.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

_INVISIBLE = (
    (0x00, 0x1F), (0x7F, 0x9F),  # C0, DEL, C1
    (0x00AD, 0x00AD), (0x061C, 0x061C), (0x180E, 0x180E), (0x200B, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F),
    (0xFEFF, 0xFEFF), (0xFFF9, 0xFFFB), (0xE0000, 0xE007F),
)  # fmt: skip
"""First and last code point: controls, what turns the direction of writing, what has no width, ends of lines, tags."""
_KEPT = frozenset("\t\n\u200c\u200d")
"""Tabs and ends of lines; the joiners of Persian, Indian scripts and emoji."""
_ESCAPES = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    for first, last in _INVISIBLE
    for code in range(first, last + 1)
    if chr(code) not in _KEPT
}
_IN_JSON = {code: json.dumps(chr(code))[1:-1] for code in _ESCAPES if code > 0x1F}
"""Besides those that `json.dumps` itself escapes."""

_SECRETS = (
    # user and password of an address; a password may hold '/', '?' and '#', and a port is none
    (re.compile(r"(?<=://)(?:(?:[^\s/?#@]*@)+|[^\s/?#@:]*:(?!\d*(?:[/?#\s]|$))[^\s@]*@(?:[^\s/?#@]*@)*)"), "***@"),
    # what stands behind the path of an address: tokens, signatures, keys
    (re.compile(r"([a-z][a-z0-9+.-]*://[^\s?#'\"]*)[?#][^\s'\",;)\]}]+", re.IGNORECASE), r"\1?***"),
    (re.compile(r"\b(bearer\s+|authorization\W+\w+\s+)[\w.~+/=-]{8,}", re.IGNORECASE), r"\1***"),
    (
        re.compile(
            r"(?<![\w-])((?:[a-z]+[_-])?(?:password|passwd|pwd|secret|api[_-]?key|access[_-]?token)['\"]?\s*[=:]\s*)"
            r"(?:'[^']*'|\"[^\"]*\"|[^\s'\"&,;]+)",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
)


def escaped(text: str) -> str:
    r"""`text` as a terminal may have it: control and invisible characters are written as `\x1b` and `\u202e`."""
    return text.translate(_ESCAPES)


def redacted(text: str) -> str:
    """`text` without passwords and tokens: of addresses the user, the password and all behind the path, and the values
    of what is called a password, a secret or a key.

    >>> redacted("postgresql://anna:secret@db/wise?password=x is locked")
    'postgresql://***@db/wise?*** is locked'
    """
    for pattern, kept in _SECRETS:
        text = pattern.sub(kept, text)
    return text


def finite(value: float) -> float | None:
    """A number that JSON has; a threshold that nothing reaches is none."""
    return value if math.isfinite(value) else None


def json_line(value: Any, **options: Any) -> str:
    """JSON in which no character ends a line or steers a terminal: each stands there as its escape."""
    return json.dumps(value, ensure_ascii=False, **options).translate(_IN_JSON)
