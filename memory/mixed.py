"""Rows of one batch, each under a side memory of its own: how versions and namespaces are served side by side.

A request keeps the memory that it began with, while others in the same batch have later ones, or none. The base's
layers run once for all of them; only the side memories are asked row by row. Since a token's route depends on its own
activation, or on the ids of its own row, a row says the same here as it says alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from wise.errors import ConfigError
from wise.memory.sequences import Rows, SequenceReader
from wise.memory.side_memory import Route, SideMemory


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What one memory decided in the last forward, about the rows that are under it."""

    memory: SideMemory
    rows: tuple[int, ...]
    activation: Tensor
    """`[rows * width, f]`, the tokens of one row after those of another."""
    route: Route
    """Of the same tokens."""
    width: int
    """New tokens of each row."""
    read: Rows | None
    """What these rows read (`hybrid`)."""
    reader: SequenceReader | None

    def keys(self) -> list[int]:
        """Of each token, the key whose edit would speak, by its place in the router's keys; -1 where it has none."""
        with _showing(self.reader, self.read):
            return [int(key) for key in self.memory.evidence(self.activation).key.tolist()]


class MixedMemory(SideMemory):
    """Stands in the layer in place of one memory; `rows` is set before each forward."""

    def __init__(self, reader: SequenceReader | None) -> None:
        """reader: what notes the ids that the memories go by (`hybrid`)."""
        torch.nn.Module.__init__(self)  # a bank and a router of its own it has not
        self._reader = reader
        self.rows: Sequence[SideMemory | None] = ()
        """The memory of each row of the next forward; None is the base alone."""
        self.heard: tuple[Heard, ...] = ()
        """What was decided in the last forward."""

    def forward(self, activation: Tensor, output: Tensor) -> Tensor:
        """activation `[..., f]` and the base's output `[..., d]`, rows flattened or not -> `[..., d]`."""
        if not self.rows or activation[..., 0].numel() % len(self.rows):
            raise ConfigError(f"{len(self.rows)} memories for {list(activation.shape)}: one for each row was expected")
        by_row = activation.reshape(len(self.rows), -1, activation.shape[-1])
        mixed = output.reshape(len(self.rows), -1, output.shape[-1])
        heard = []
        for memory, places in self._groups():
            told = self._heard(memory, places, by_row[list(places)])
            heard.append(told)
            route = told.route
            if route.delta is None:
                continue
            own = mixed[list(places)]
            delta = route.delta.to(own.dtype).view(own.shape)
            said = torch.where(route.open.view(*own.shape[:-1], 1), own + delta, own)
            mixed = said if len(places) == len(mixed) else mixed.index_copy(0, _index(places, mixed.device), said)
        self.heard = tuple(heard)
        return mixed.view(output.shape)

    def _groups(self) -> Iterator[tuple[SideMemory, tuple[int, ...]]]:
        found: dict[int, tuple[SideMemory, list[int]]] = {}
        for place, memory in enumerate(self.rows):
            if memory is not None:
                found.setdefault(id(memory), (memory, []))[1].append(place)
        yield from ((memory, tuple(places)) for memory, places in found.values())

    def _heard(self, memory: SideMemory, places: tuple[int, ...], activation: Tensor) -> Heard:
        """activation: `[rows, width, f]`."""
        flat, width = activation.flatten(0, 1), activation.shape[1]
        read = None if self._reader is None else self._reader.rows.select(places, width)
        with _showing(self._reader, read):
            route = memory.route(flat)
        return Heard(
            memory=memory, rows=places, activation=flat, route=route, width=width, read=read, reader=self._reader
        )


def _index(places: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(places, device=device)


def _showing(reader: SequenceReader | None, rows: Rows | None) -> AbstractContextManager[None]:
    return nullcontext() if reader is None or rows is None else reader.showing(rows)
