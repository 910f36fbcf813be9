"""Running text, questions and short exchanges: those that ship, and files of a user's own.

The shipped ones were written for this measurement. They name no people, works, companies or countries, so that hardly
any set of edits is asked for by them; what is nevertheless is left out when a routing set is built.
"""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, closing
from importlib.resources import files
from os import PathLike
from pathlib import Path

from wise.checks import checked_text, given
from wise.errors import ConfigError, EditError

TEXT_FIELDS = ("text", "question")
"""Where a text stands in a line of JSON; the first of them that is there counts."""

_OPENERS: dict[str, Callable[[Path], AbstractContextManager[Iterable[bytes]]]] = {".gz": gzip.open, ".xz": lzma.open}
_SEPARATOR = " | "


def shipped_questions() -> list[str]:
    """About 150 everyday questions and unfinished statements."""
    return _shipped("questions.txt").splitlines()


def shipped_passages() -> list[str]:
    """40 paragraphs in many registers, about 5,000 words."""
    return _shipped("passages.txt").strip().split("\n\n")


def shipped_exchanges() -> list[tuple[str, str]]:
    """Everyday questions with an answer each."""
    lines = _shipped("exchanges.txt").splitlines()
    return [(question, answer) for question, _, answer in (line.partition(_SEPARATOR) for line in lines)]


def _shipped(name: str) -> str:
    return (files("wise.eval.routing") / "data" / name).read_text(encoding="utf-8")


def read_texts(path: str | PathLike[str]) -> list[str]:
    """The texts of a file, in its order.

    Args:
        path: `.txt` with paragraphs between blank lines, or `.jsonl` with one object per line, whose text is
            the first of `TEXT_FIELDS` that it has; `.gz` or `.xz` after that where compressed.

    Raises:
        ConfigError: beginning `FILE:LINE:`, for a file that cannot be read, is not UTF-8, or holds a line that is
            no such object; and for a file of another kind, or without a text.
    """
    path = Path(path)
    kind = path.with_suffix("").suffix if path.suffix.lower() in _OPENERS else path.suffix
    if kind.lower() not in (".txt", ".jsonl"):
        raise ConfigError(f"{path}: .txt or .jsonl was expected, plain or with .gz or .xz after it; rename the file")
    with closing(_lines(path)) as lines:
        read = _paragraphs if kind.lower() == ".txt" else _fields
        texts = list(read(path, lines))
    if not texts:
        raise ConfigError(f"{path}: holds no text; give paragraphs between blank lines, or one JSON object per line")
    return texts


def _paragraphs(path: Path, lines: Iterable[tuple[int, str]]) -> Generator[str]:
    paragraph: list[str] = []
    for _, line in lines:
        if line.strip():
            paragraph.append(line.rstrip())
        elif paragraph:
            yield "\n".join(paragraph).strip()
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph).strip()


def _fields(path: Path, lines: Iterable[tuple[int, str]]) -> Generator[str]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}:{number}: broken JSON: {error}; give one object per line") from None
        name = next((name for name in TEXT_FIELDS if isinstance(row, dict) and name in row), None)
        if name is None:
            raise ConfigError(
                f"{path}:{number}: {given(row)} was given, an object with a field {' or '.join(TEXT_FIELDS)} "
                "was expected"
            )
        try:
            yield checked_text(name, row[name]).strip()
        except EditError as error:
            raise ConfigError(f"{path}:{number}: {error}") from None


def _plain(path: Path) -> AbstractContextManager[Iterable[bytes]]:
    return path.open("rb")


def _lines(path: Path) -> Generator[tuple[int, str]]:
    """Each line of a file, unpacked, with its number from 1."""
    if path.is_dir():
        raise ConfigError(f"{path}: a folder was given; name one file in it")
    number = 0
    try:
        with _OPENERS.get(path.suffix.lower(), _plain)(path) as stream:
            for number, content in enumerate(stream, start=1):
                yield number, content.decode("utf-8-sig" if number == 1 else "utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}:{number}: not UTF-8 text; save the file as UTF-8") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        problem = f"cannot be read on: {error}; fetch or pack the file again"
        raise ConfigError(f"{path}:{number + 1}: {problem}") from error
