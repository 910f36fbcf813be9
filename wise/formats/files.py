"""Files and folders of records: which files they are, and what stands in each, or what is wrong with it.

JSON lines, a JSON list, a table of text (`wise.formats.tables`), Parquet or Arrow; text may be packed (`.gz`, `.xz`).
Every error begins `FILE:LINE: `. In a list or a binary table the place is the number of the record, counted from 1;
for broken JSON it is the line. A file is looked at before it is opened: a device or a pipe would be waited for.
"""

from __future__ import annotations

import gzip
import json
import lzma
import re
import stat
import sys
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any

from wise.errors import EditError, given
from wise.formats.tables import BINARY, TEXT, binary_rows, text_rows
from wise.formats.tracked_row import TrackedRow
from wise.memory.bounded_file import unfetched

MAX_BYTES = 268_435_456
"""Bytes of a file, unpacked. What is read takes a few times as much memory."""

CHUNK = 1_048_576
"""Bytes that are unpacked at once to measure a packed file."""

_OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {".gz": gzip.open, ".xz": lzma.open}  # type: ignore[dict-item]
_ENDINGS = (".json", ".jsonl", ".ndjson", *TEXT, *BINARY)
_NOT_READ = (".zst", ".bz2", ".zip", ".tar", ".tgz", ".7z", ".xlsx", ".xls", ".ods", ".feather", ".orc", ".avro")
"""Endings of data of other kinds: such a file in a folder is refused, not stepped over."""
_METADATA_FILES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files of a saved dataset that hold no records."""
_SHARD = re.compile(r"(?P<name>.*?)-(?P<place>\d+)-of-(?P<count>\d+)")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Stands at the beginning of a file that some programs save as UTF-8."""
_NOT_UTF8 = "not UTF-8 text; save the file as UTF-8 (or name it .gz or .xz where it is compressed)"
_JSON = json.JSONDecoder(object_pairs_hook=TrackedRow.unique)
_SPACE = re.compile(r"\s*")


def data_files(path: Path) -> list[Path]:
    """The files that a path names: one file, or those of a split of a folder (a dataset saved with `datasets`, a clone
    of one from the hub, any folder of data files). `FOLDER/SPLIT` names a split if there is no such file.

    Raises EditError if there is no data file, or several splits and none was named.
    """
    try:
        if path.is_dir():
            splits = _splits(path)
        elif not path.exists() and path.parent.is_dir():
            splits = {split: files for split, files in _splits(path.parent).items() if split.name == path.name}
            splits = {path: splits[path]} if path in splits else splits or {path: [path]}
        else:
            return [path]
    except OSError as error:
        raise EditError(f"{path}: cannot be read: {error.strerror}") from None
    if not splits:
        raise EditError(f"{path}: a folder was given that holds no data file ({', '.join(_ENDINGS)})")
    if len(splits) > 1:
        raise EditError(f"{path}: holds several splits; name one: {', '.join(map(str, sorted(splits)))}")
    [files] = splits.values()
    return _complete(files)


def _splits(folder: Path) -> dict[Path, list[Path]]:
    """The data files below a folder, by the path without the number of the shard and the ending."""
    splits: dict[Path, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        data = ending(file) in (*_ENDINGS, *_NOT_READ) and not file.is_dir()
        if hidden or not data or file.name in _METADATA_FILES or file.name.startswith("cache-"):
            continue
        stem = file.name[: -len("".join(_suffixes(file)))]
        shard = _SHARD.fullmatch(stem)
        name = shard["name"] if shard else stem
        # `datasets` calls the files of every split `data-...`, and the hub's copies have numbers for names
        split = file.parent if name == "data" or name.isdigit() else file.parent / name
        splits.setdefault(split, []).append(file)
    return splits


def _complete(files: list[Path]) -> list[Path]:
    """The files of a split. Raises EditError if one is missing, or if they are of several kinds."""
    if len({ending(file) for file in files}) > 1:
        raise EditError(f"{files[0]}: this split is there in several kinds of file; name one of the files")
    shards = [shard for file in files if (shard := _SHARD.match(file.name))]
    count = max((int(shard["count"]) for shard in shards), default=0)
    if count > len(shards):
        raise EditError(f"{files[0]}: {len(shards)} of the {count} files of this split are there; fetch the others too")
    return files


def _suffixes(file: Path) -> list[str]:
    """The ending of a file, and that of its packing."""
    return file.suffixes[-2:] if file.suffix.lower() in _OPENERS else file.suffixes[-1:]


def ending(file: Path) -> str:
    """The ending that says what a file holds, such as `.csv`, in lower case and without that of its packing."""
    return _suffixes(file)[0].lower() if file.suffix else ""


def is_table(file: Path) -> bool:
    return ending(file) in (*TEXT, *BINARY)


def check_file(path: Path) -> int:
    """The size of a file in bytes.

    Raises EditError for what is no file, before it is opened, for a Git LFS pointer, and for a kind that is not read.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise EditError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise EditError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from None
    if stat.S_ISDIR(status.st_mode):
        raise EditError(f"{path}: a folder was given; name one file in it")
    if not stat.S_ISREG(status.st_mode):
        raise EditError(f"{path}: is a pipe or a device; write what it gives to a file, and give that")
    if path.suffix.lower() in _NOT_READ:
        raise EditError(f"{path}: {path.suffix} is not read; unpack or save it as one of {', '.join(_ENDINGS)}")
    pointer = unfetched(path)
    if pointer is not None:
        raise EditError(f"{path}: {pointer}")
    return status.st_size


def is_lines(path: Path) -> bool:
    """Whether a path is a file of JSON lines that is not packed, which may be followed while it grows."""
    if data_files(path) != [path]:
        return False
    check_file(path)
    if path.suffix.lower() in _OPENERS or is_table(path):
        return False
    with path.open("rb") as stream:
        return not stream.read(4096).removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"[")


def rows(path: Path) -> Generator[tuple[int, TrackedRow]]:
    """Each record of a file with its line, or its number. Raises EditError where it cannot be read, or holds others."""
    if ending(path) in BINARY:
        _check_size(path, check_file(path))
        yield from binary_rows(path, MAX_BYTES)
        return
    with closing(lines(path)) as numbered:
        if ending(path) in TEXT:
            yield from text_rows(path, ((line, _decode(path, line, content)) for line, content in numbered))
        else:
            yield from _json_rows(path, numbered)


def _json_rows(path: Path, numbered: Iterator[tuple[int, bytes]]) -> Generator[tuple[int, TrackedRow]]:
    blank: list[bytes] = []
    for line, content in numbered:
        if not content.strip():
            blank.append(content)
        elif content.lstrip().startswith(b"[") and line == len(blank) + 1:
            whole = b"".join([*blank, content, *(rest for _, rest in numbered)])
            yield from _list_items(path, _decode(path, 1, whole))
        else:
            try:
                row = object_of(content)
            except EditError as error:
                raise EditError(f"{path}:{line}: {error}") from None
            yield line, row


def object_of(line: bytes) -> TrackedRow:
    """The object that a line holds. Raises EditError."""
    try:
        text = line.removeprefix(_BYTE_ORDER_MARK).strip().decode()
        value, end = _value(text, 0)
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except UnicodeDecodeError:
        raise EditError(_NOT_UTF8) from None
    except json.JSONDecodeError as error:
        raise EditError(_broken(error)) from None
    return _checked_row(value)


def _list_items(path: Path, text: str) -> Generator[tuple[int, TrackedRow]]:
    """The objects of a list, read one by one: a list takes several times its size when it is held whole."""
    number, end = 0, _skip_space(text, text.index("[") + 1)
    try:
        while not text.startswith("]", end) and (number == 0 or text.startswith(",", end)):
            number += 1
            value, end = _value(text, _skip_space(text, end + (number > 1)))
            yield number, _checked_row(value)
            end = _skip_space(text, end)
        closed = text.startswith("]", end)
        end = _skip_space(text, end + closed)
        if not closed or end < len(text):
            raise json.JSONDecodeError("a comma or the end of the list was expected", text, end)
    except json.JSONDecodeError as error:
        raise EditError(f"{path}:{error.lineno}: {_broken(error)}") from None
    except EditError as error:
        raise EditError(f"{path}:{number}: {error}") from None


def _skip_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _checked_row(value: object) -> TrackedRow:
    if not isinstance(value, TrackedRow):
        raise EditError(f"{given(value)} was given, a JSON object was expected")
    return value


def _value(text: str, at: int) -> tuple[Any, int]:
    """The JSON value at a place of a text, and where it ends."""
    try:
        return _JSON.raw_decode(text, at)
    except (EditError, json.JSONDecodeError):
        raise
    except ValueError:
        most = f"{sys.get_int_max_str_digits():,}"
        raise EditError(f"JSON that cannot be held: a number of more than {most} digits; write it as text") from None
    except RecursionError:
        raise EditError("JSON that cannot be held: it is nested too deeply; give a record as its set has it") from None


def _broken(error: json.JSONDecodeError) -> str:
    return f"broken JSON: {error.msg} at column {error.colno}; give one object per line, or one list"


def _decode(path: Path, line: int, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        raise EditError(f"{path}:{line}: {_NOT_UTF8}") from None


def _check_size(path: Path, size: int, where: str = "") -> None:
    if size > MAX_BYTES:
        raise EditError(f"{path}{where}: holds more than {MAX_BYTES:,} bytes; split it into several files")


def lines(path: Path) -> Generator[tuple[int, bytes]]:
    """Each line of a file, unpacked, with its number from 1. Raises EditError where it cannot be read or is large."""
    _check_size(path, check_file(path))
    line, size = 0, 0
    try:
        _check_unpacked(path)
        with _open(path) as stream:
            while content := stream.readline(MAX_BYTES - size + 1):
                line, size = line + 1, size + len(content)
                _check_size(path, size, f":{line}")
                yield line, content.removeprefix(_BYTE_ORDER_MARK) if line == 1 else content
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        where = f"{path}:{line + 1}"
        raise EditError(f"{where}: cannot be read on: {error}; fetch or pack the file again") from error


def _check_unpacked(path: Path) -> None:
    """Raises EditError for a packed file that holds too much, in little memory: a few bytes may hold a lot."""
    if path.suffix.lower() in _OPENERS:
        size = 0
        with _open(path) as stream:
            while part := stream.read(CHUNK):
                size += len(part)
                _check_size(path, size)


def _open(path: Path) -> IO[bytes]:
    opener = _OPENERS.get(path.suffix.lower())
    return path.open("rb") if opener is None else opener(path)
