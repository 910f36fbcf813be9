"""Readers of relations: what a question asks, as a unit vector that is alike for wordings of one relation.

A reader is taught by contrast to tell apart the relations of one subject (`wise.training.router`), so that "Where
was she born?" and "Where did she die?" lie apart although nearly all of their words agree.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from wise.memory.key_space import RelationSpace

REMEMBERED = 8192
"""Texts whose vectors a reader keeps."""


class RelationReader(ABC):
    """Reads texts. Safe to use from several threads; what was read lately is not read again."""

    name: str
    """What tells this reader from others: keys made by one mean nothing to another."""
    size: int
    """r: numbers in a vector."""
    threshold: float
    """Cosine from which two questions that name one subject ask the same, unless an edit has its own."""
    sentence_threshold: float
    """The same of an unfinished sentence that names it."""
    unnamed_threshold: float
    """The same where none is named."""
    nameless_threshold: float
    """The same of edits that have no subject, unless an edit has its own."""
    relation_centres: Tensor
    """`[n, r]` unit vectors, one of each relation of the questions that ship, or none."""

    def __init__(self) -> None:
        self.relation_centres = torch.zeros(0, 0)
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def key_space(self) -> RelationSpace:
        """The space of the keys that this reader makes."""
        return RelationSpace(
            reader=self.name, size=self.size, threshold=self.threshold, unnamed_threshold=self.unnamed_threshold
        )

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Itself: a copied model reads with the same reader."""
        return self

    def read(self, texts: Sequence[str]) -> Tensor:
        """`[n, r]` float32 unit vectors on the CPU, under autocast too."""
        with self._lock:
            new = [text for text in dict.fromkeys(texts) if text not in self._known]
            known = {text: self._known[text] for text in texts if text in self._known}
        if new:
            with torch.autocast("cpu", enabled=False):
                known |= zip(new, self._encode(new), strict=True)
        with self._lock:
            for text in dict.fromkeys(texts):
                self._known[text] = known[text]
                self._known.move_to_end(text)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return torch.stack([known[text] for text in texts]) if texts else torch.zeros(0, self.size)

    @abstractmethod
    def _encode(self, texts: Sequence[str]) -> Tensor:
        """`[n, r]` of texts that are not remembered."""
