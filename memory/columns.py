"""Columns: the tensors of many slots as a few.

Slots of one kind whose tensors are of one width are a group. What those of a group have by the same name stands in one
tensor `GROUP/NAME`, row upon row, and the number of rows of each in `GROUP/NAME/rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wise.memory.slot import Slot

ROWS = "/rows"


def columns_of(slots: Sequence[Slot]) -> tuple[list[int], dict[str, Tensor]]:
    """The group of each slot, groups numbered as they come, and the columns of all groups."""
    parts: dict[Any, list[dict[str, Tensor]]] = {}
    numbers: dict[Any, int] = {}
    groups = []
    for slot in slots:
        own = slot.tensors()
        alike = (slot.kind, *((name, t.dtype, t.ndim, t.shape[1:]) for name, t in own.items()))
        parts.setdefault(alike, []).append(own)
        groups.append(numbers.setdefault(alike, len(numbers)))
    columns: dict[str, Tensor] = {}
    for number, group in enumerate(parts.values()):
        for name in group[0]:
            columns |= _stacked(f"{number}/{name}", [own[name] for own in group])
    return groups, columns


def is_column(name: str) -> bool:
    """Whether a tensor of this name is one of `columns_of`."""
    return "/" in name


def by_group(columns: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The columns of each group by `NAME` and `NAME/rows`. Raises ValueError where a group is no number."""
    groups: dict[int, dict[str, Tensor]] = {}
    for name in sorted(columns):
        group, _, part = name.partition("/")
        groups.setdefault(int(group), {})[part] = columns[name]
    return groups


def apart(group: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """The tensors of each of the `count` slots of a group, views of its columns.

    Raises ValueError or RuntimeError where these are not the columns of so many slots.
    """
    names = [name for name in group if not name.endswith(ROWS)]
    rows = zip(*(unstacked(group, name) for name in names), strict=True)
    found = [dict(zip(names, row, strict=True)) for row in rows]
    if len(found) != count:
        raise ValueError(f"there are rows of {len(found)} slots, expected those of {count}")
    return found


def unstacked(tensors: Mapping[str, Tensor], name: str) -> Sequence[Tensor]:
    """The parts of the column of this name."""
    rows = tensors.get(name + ROWS)
    return tensors[name].unbind() if rows is None else torch.split(tensors[name], rows.tolist())


def _stacked(name: str, parts: Sequence[Tensor]) -> dict[str, Tensor]:
    """Numbers side by side, others row upon row with their counts."""
    if not parts[0].ndim:
        return {name: torch.stack(list(parts))}
    return {name: torch.cat(list(parts)), name + ROWS: torch.tensor([len(part) for part in parts])}
