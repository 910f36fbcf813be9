"""Tables with named columns: CSV, TSV, Parquet and Arrow.

A cell that is empty or null is a field that is not there. Text has no lists: a cell that spells a list or an object, in
JSON or in Python, is read as one. Parquet and Arrow need pyarrow (`pip install 'wise-runtime[datasets]'`).
"""

from __future__ import annotations

import csv
import json
from ast import literal_eval
from collections.abc import Generator, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from wise.errors import EditError
from wise.formats.tracked_row import TrackedRow, repeated, tracked

TEXT = (".csv", ".tsv")
BINARY = (".parquet", ".arrow")
_ROWS_AT_ONCE = 256


def text_rows(path: Path, numbered: Iterator[tuple[int, str]]) -> Generator[tuple[int, TrackedRow]]:
    """The rows of a table of text, each with the line that it begins in. The first row names the columns; cells are
    separated by the comma, semicolon or tab of which it has most.

    Raises EditError for a table that is not even.
    """
    texts = (text for _, text in numbered)
    head = next(texts, "")
    separator = max(",;\t", key=head.count)
    reader = csv.reader(chain([head], texts), delimiter=separator, strict=True)
    try:
        names = next(reader, [])
        _check_names(path, names)
        while True:
            line = reader.line_num + 1
            cells = next(reader, None)
            if cells is None:
                return
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(names):
                raise EditError(
                    f"{path}:{line}: {len(cells)} cells were given, {len(names)} were expected, one for each column; "
                    f"put a cell that holds {separator!r} in quotes"
                )
            filled = ((name, _cell(cell)) for name, cell in zip(names, cells, strict=True) if cell.strip())
            yield line, TrackedRow(filled)
    except csv.Error as error:
        raise EditError(f"{path}:{reader.line_num}: {error}; save the table as CSV again") from None


def _check_names(path: Path, names: list[str]) -> None:
    twice = repeated(names)
    if twice is not None:
        raise EditError(f"{path}:1: column {twice!r} is there twice; leave one of the two out")


def _cell(text: str) -> Any:
    if text.lstrip()[:1] in ("[", "{"):
        for read in (json.loads, literal_eval):
            try:
                value = tracked(read(text.strip()))
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
            if isinstance(value, list | dict):
                return value
    return text


def binary_rows(path: Path, largest: int) -> Generator[tuple[int, TrackedRow]]:
    """The rows of a Parquet or Arrow file with their numbers from 1.

    Raises EditError for one that cannot be read, or that holds more than `largest` bytes.
    """
    try:
        import pyarrow
    except ImportError:
        raise EditError(f"{path}: needs pyarrow to be read; pip install 'wise-runtime[datasets]'") from None
    number, size = 0, 0
    try:
        for batch in _batches(path, largest):
            size += batch.nbytes
            if size > largest:
                raise EditError(f"{path}: holds more than {largest:,} bytes; split it into several files")
            _check_names(path, batch.schema.names)
            for fields in batch.to_pylist():
                number += 1
                yield number, tracked(fields)
    except EditError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise EditError(f"{path}:{number + 1}: cannot be read: {problem:.200}; fetch the file again") from error


def _batches(path: Path, largest: int) -> Generator[Any]:
    import pyarrow.parquet

    if path.suffix.lower() == ".parquet":
        with pyarrow.parquet.ParquetFile(path) as file:
            groups = (file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
            if sum(groups) > largest:
                raise EditError(f"{path}: holds more than {largest:,} bytes; split it into several files")
            yield from file.iter_batches(batch_size=_ROWS_AT_ONCE)
        return
    with pyarrow.OSFile(str(path)) as source:
        whole = source.read(6) == b"ARROW1"
        source.seek(0)
        if not whole:
            yield from pyarrow.ipc.open_stream(source)
            return
        file = pyarrow.ipc.open_file(source)
        yield from (file.get_batch(i) for i in range(file.num_record_batches))
