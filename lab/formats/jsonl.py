"""Files of lines or of JSON objects, plain or compressed: what stands in each line, or what is wrong with it.

Every error begins `FILE:LINE: `. In a file that holds one JSON list, the place is the number of
the record, counted from 1; for a list that is broken JSON, it is the line.
"""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

from wise.errors import EditError, given

_OPENERS: dict[str, Callable[[Path], AbstractContextManager[Iterable[bytes]]]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
}


def rows(path: Path) -> Generator[tuple[int, dict[str, Any]]]:
    """Each JSON object of a file with its line, or its number in the list.

    Raises:
        EditError: the file cannot be read, or what it holds is not that.
    """
    with closing(lines(path)) as numbered:
        blank: list[bytes] = []
        for line, content in numbered:
            if not content.strip():
                blank.append(content)
            elif content.lstrip().startswith(b"[") and line == len(blank) + 1:
                yield from _listed(path, b"".join([*blank, content, *(rest for _, rest in numbered)]))
            else:
                yield line, _object(path, line, _parsed(path, line, content))


def _listed(path: Path, content: bytes) -> Generator[tuple[int, dict[str, Any]]]:
    for number, value in enumerate(_parsed(path, 1, content), start=1):
        yield number, _object(path, number, value)


def _object(path: Path, line: int, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EditError(f"{path}:{line}: {given(value)} was given, a JSON object was expected")
    return value


def _parsed(path: Path, line: int, content: bytes) -> Any:
    """The JSON value that begins in `line`."""
    try:
        return json.loads(content.rstrip().decode())
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        problem = "not UTF-8 text; save the file as UTF-8 (or name it .gz or .xz where it is compressed)"
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        problem = f"broken JSON: {error.msg} at column {error.colno}; give one object per line, or one list"
    except (ValueError, RecursionError) as error:
        problem = f"JSON that cannot be held: {error}"
    raise EditError(f"{path}:{line}: {problem}")


def _open(path: Path) -> AbstractContextManager[Iterable[bytes]]:
    return path.open("rb")


def lines(path: Path) -> Generator[tuple[int, bytes]]:
    """Each line of a file, unpacked, with its number from 1.

    Raises:
        EditError: the file cannot be read.
    """
    if path.is_dir():
        raise EditError(f"{path}: a folder was given; name one file in it")
    line = 0
    try:
        with _OPENERS.get(path.suffix.lower(), _open)(path) as stream:
            for line, content in enumerate(stream, start=1):
                yield line, content.removeprefix(b"\xef\xbb\xbf") if line == 1 else content
    except FileNotFoundError:
        raise EditError(f"{path}: no such file; check the path") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        where = f"{path}:{line + 1}"
        raise EditError(f"{where}: cannot be read on: {error}; fetch or pack the file again") from error
