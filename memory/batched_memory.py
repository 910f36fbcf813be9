"""Rows of one batch, each under a side memory of its own: how versions and namespaces are served side by side.

A request keeps the memory that it began with, while others in the same batch have later ones, or none. The base's
layers run once for all rows; only the side memories are applied row by row. A token's route depends only on its own
activation, or on the ids of its own row, so a row gives the same answer here as alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from wise.errors import ConfigError
from wise.memory.sequences import SequenceReader, TokenRows
from wise.memory.side_memory import Route, SideMemory


@dataclass(frozen=True, kw_only=True)
class RoutingRecord:
    """What one memory decided in the last forward, for the rows that are under it."""

    memory: SideMemory
    rows: tuple[int, ...]
    activation: Tensor
    """`[rows * width, f]`, the tokens of one row after those of another."""
    route: Route
    """Of the same tokens."""
    width: int
    """New tokens of each row."""
    read: TokenRows | None
    """What these rows read (`hybrid`)."""
    reader: SequenceReader | None

    def keys(self) -> list[int]:
        """For each token, the nearest key by its place in the router's keys; -1 where the router has none."""
        with _showing(self.reader, self.read):
            return [int(key) for key in self.memory.evidence(self.activation).key.tolist()]


class BatchedMemory(SideMemory):
    """Stands in the layer in place of one memory; `rows` is set before each forward."""

    def __init__(self, reader: SequenceReader | None) -> None:
        """reader: what records the ids that the memories route by (`hybrid`)."""
        torch.nn.Module.__init__(self)  # it has no bank and no router of its own
        self._reader = reader
        self.rows: Sequence[SideMemory | None] = ()
        """The memory of each row of the next forward; None is the base alone."""
        self.records: tuple[RoutingRecord, ...] = ()
        """What was decided in the last forward."""

    def forward(self, activation: Tensor, output: Tensor) -> Tensor:
        """activation `[..., f]` and the base's output `[..., d]`, rows flattened or not -> `[..., d]`."""
        if not self.rows or activation[..., 0].numel() % len(self.rows):
            raise ConfigError(f"{len(self.rows)} memories for {list(activation.shape)}: one for each row was expected")
        by_row = activation.reshape(len(self.rows), -1, activation.shape[-1])
        result = output.reshape(len(self.rows), -1, output.shape[-1])
        records = []
        for memory, places in self._groups():
            alone = len(places) == len(by_row)  # nothing to gather
            record = self._record(memory, places, by_row if alone else by_row[list(places)])
            records.append(record)
            route = record.route
            if route.delta is None:
                continue
            part = result if alone else result[list(places)]
            delta = route.delta.to(part.dtype).view(part.shape)
            edited = torch.where(route.open.view(*part.shape[:-1], 1), part + delta, part)
            result = edited if alone else result.index_copy(0, torch.tensor(places, device=result.device), edited)
        self.records = tuple(records)
        return result.view(output.shape)

    def _groups(self) -> Iterator[tuple[SideMemory, tuple[int, ...]]]:
        groups: dict[int, tuple[SideMemory, list[int]]] = {}
        for place, memory in enumerate(self.rows):
            if memory is not None:
                groups.setdefault(id(memory), (memory, []))[1].append(place)
        yield from ((memory, tuple(places)) for memory, places in groups.values())

    def _record(self, memory: SideMemory, places: tuple[int, ...], activation: Tensor) -> RoutingRecord:
        """activation: `[rows, width, f]`."""
        flat, width = activation.flatten(0, 1), activation.shape[1]
        read = None if self._reader is None else self._reader.rows.select(places, width)
        with _showing(self._reader, read):
            route = memory.route(flat)
        return RoutingRecord(
            memory=memory, rows=places, activation=flat, route=route, width=width, read=read, reader=self._reader
        )


def _showing(reader: SequenceReader | None, rows: TokenRows | None) -> AbstractContextManager[None]:
    return nullcontext() if reader is None or rows is None else reader.showing(rows)
