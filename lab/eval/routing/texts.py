"""Running text, questions and short exchanges: those that ship, and files that a user gives.

The shipped ones were written for this measurement. They name no people, works, companies or countries, so that hardly
any set of edits is asked for by them; what is nevertheless is left out when a routing set is built.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from importlib.resources import files
from itertools import groupby, starmap
from os import PathLike
from pathlib import Path

from wise.errors import ConfigError, EditError, checked_text, missing
from wise.formats.files import lines, rows

TEXT_FIELDS = ("text", "question")
"""Where a text stands in a line of JSON; the first of them that is there counts."""

_PACKED = (".gz", ".xz")
_SEPARATOR = " | "


def shipped_questions() -> list[str]:
    """About 150 everyday questions and unfinished statements."""
    return _shipped("questions.txt").splitlines()


def shipped_passages() -> list[str]:
    """40 paragraphs in many registers, about 5,000 words."""
    return _shipped("passages.txt").strip().split("\n\n")


def shipped_exchanges() -> list[tuple[str, str]]:
    lines = _shipped("exchanges.txt").splitlines()
    return [(question, answer) for question, _, answer in (line.partition(_SEPARATOR) for line in lines)]


def running_text(path: Path | None) -> list[str]:
    return shipped_passages() if path is None else read_texts(path)


def _shipped(name: str) -> str:
    return (files("wise.lab.eval.routing") / "data" / name).read_text(encoding="utf-8")


def read_texts(path: str | PathLike[str]) -> list[str]:
    """The texts of a file, in its order: `.txt` with paragraphs between blank lines, or `.jsonl` with one object per
    line, whose text is the first of `TEXT_FIELDS` that it has; `.gz` or `.xz` after that where compressed.

    Raises EditError, beginning `FILE:LINE:`, for a file that cannot be read, or holds a line that is no such object;
    ConfigError for a file of another kind, of another encoding, or without a text.
    """
    path = Path(path)
    kind = path.with_suffix("").suffix if path.suffix.lower() in _PACKED else path.suffix
    if kind.lower() not in (".txt", ".jsonl"):
        raise ConfigError(f"{path}: .txt or .jsonl was expected, plain or with .gz or .xz after it; rename the file")
    read = _paragraphs if kind.lower() == ".txt" else _fields
    texts = list(read(path))
    if not texts:
        raise ConfigError(f"{path}: holds no text; give paragraphs between blank lines, or one JSON object per line")
    return texts


def _paragraphs(path: Path) -> Generator[str]:
    def decoded(number: int, content: bytes) -> str:
        try:
            return content.decode().rstrip()
        except UnicodeDecodeError:
            raise ConfigError(f"{path}:{number}: not UTF-8 text; save the file as UTF-8") from None

    with closing(lines(path)) as numbered:
        for filled, paragraph in groupby(starmap(decoded, numbered), key=bool):
            if filled:
                yield "\n".join(paragraph).strip()


def _fields(path: Path) -> Generator[str]:
    with closing(rows(path)) as numbered:
        for number, row in numbered:
            name = next((name for name in TEXT_FIELDS if name in row), TEXT_FIELDS[0])
            try:
                if name not in row:
                    raise missing(name, row)
                yield checked_text(name, row[name]).strip()
            except EditError as error:
                raise EditError(f"{path}:{number}: {error}") from None
