"""Relation readers: they map a question to a unit vector, so that two wordings of one question are close.

A reader is trained by contrast to tell apart the relations of one subject (`wise.training.router`): "Where was she
born?" and "Where did she die?" are far apart although most of their words are the same.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from wise.memory.key_space import RelationSpace

REMEMBERED = 8192
"""Texts whose vectors a reader caches."""


class RelationReader(ABC):
    """Maps texts to vectors, and caches them. Safe to use from several threads.

    To add one, subclass this and give it to `wise.wrap(reader=...)`; `wise.router.encoder` has the one that ships.
    """

    name: str
    """Identifies this reader: keys made by another one cannot be compared with its vectors."""
    size: int
    """r: numbers in a vector."""
    threshold: float
    """Cosine from which a question asks for an edit whose subject it names, unless the edit has its own threshold. A
    higher one misses more rewordings and leaves more other questions alone; so for those below."""
    sentence_threshold: float
    """The same for an unfinished sentence that names the subject."""
    unnamed_threshold: float
    """The same for a question that names no subject."""
    nameless_threshold: float
    """The same for an edit without a subject, unless the edit has its own threshold."""
    relation_centres: Tensor
    """`[n, r]` unit vectors, one for each relation of the questions that ship, or none."""
    relation_kinds: Tensor
    """`[n]` the number of the kind of subject that each of them is asked of."""

    def __init__(self) -> None:
        self.relation_centres, self.relation_kinds = torch.zeros(0, 0), torch.zeros(0, dtype=torch.long)
        self._vectors: OrderedDict[str, Tensor] = OrderedDict()
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

    def __getstate__(self) -> dict[str, Any]:
        """For another process: neither the lock nor the texts that were read."""
        return {name: value for name, value in vars(self).items() if name not in ("_vectors", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._vectors, self._lock = OrderedDict(), threading.Lock()

    def read(self, texts: Sequence[str]) -> Tensor:
        """`[n, r]` float32 unit vectors on the CPU, under autocast too."""
        with self._lock:
            new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
            vectors = {text: self._vectors[text] for text in texts if text in self._vectors}
        if new:
            with torch.autocast("cpu", enabled=False):
                vectors |= zip(new, self._encode(new), strict=True)
        with self._lock:
            for text in dict.fromkeys(texts):
                self._vectors[text] = vectors[text]
                self._vectors.move_to_end(text)
            while len(self._vectors) > REMEMBERED:
                self._vectors.popitem(last=False)
        return torch.stack([vectors[text] for text in texts]) if texts else torch.zeros(0, self.size)

    @abstractmethod
    def _encode(self, texts: Sequence[str]) -> Tensor:
        """`[n, r]` of texts that are not remembered."""
