"""The relation of an edit among those that ship with wise, and its rivals: what else may be asked about its subject.

A question about an edit's subject that is much nearer to a rival than to the edit does not ask for the edit. Two edits
of which each is much nearer to its own relation than to the other's ask different questions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wise.router.readers import RelationReader

RELATION_WEIGHTS = (1 / 3, 2 / 3)
"""How much an edit's question, and the question with the answer, have to say in which relation it is of."""
SURE = 0.6
"""Score from which an edit is taken to be of its nearest relation, and so of that relation's kind of subject."""
MAY_BE_SAME = 0.15
"""A relation that scores less by no more than this may be what the edit asks, and is no rival."""
RIVAL_MARGIN = 0.25
"""How much nearer a question may be to a rival. Less leaves more other questions alone and misses more rewordings."""


def relation_scores(vectors: Tensor, centres: Tensor) -> Tensor:
    """`[n]` how near each of `[n, r]` centres is to an edit.

    vectors: `[2, r]` of its question, and of the question with the answer, which tells most; or `[1, r]`, the first.
    """
    weights = torch.tensor(RELATION_WEIGHTS[: len(vectors)], device=vectors.device)
    return centres @ (vectors.T @ weights)


def nearest_relation(vectors: Tensor, centres: Tensor) -> int:
    """The centre that an edit is of; arguments as for `relation_scores`."""
    return int(relation_scores(vectors, centres).argmax())


def rivals(vectors: Tensor, reader: RelationReader) -> Tensor:
    """`[m]` the places of an edit's rivals among the reader's relations: the others of the kind of its own.

    There are none where no relation is near. vectors: `[2, r]` as for `relation_scores`.
    """
    if not len(reader.relation_centres):
        return torch.zeros(0, dtype=torch.long)
    scores, kinds = relation_scores(vectors, reader.relation_centres), reader.relation_kinds
    nearest = int(scores.argmax())
    if float(scores[nearest]) < SURE:
        return torch.zeros(0, dtype=torch.long)
    return ((kinds == kinds[nearest]) & (scores < scores[nearest] - MAY_BE_SAME)).nonzero()[:, 0]


def relations_differ(first: Tensor, second: Tensor, centres: Tensor) -> bool:
    """Whether two edits are of two relations: on average each scores less for the other's by more than `MAY_BE_SAME`.

    first, second: `[2, r]` their vectors, as for `relation_scores`. centres: `[2, r]` of their nearest relations.
    """
    scores = torch.stack([relation_scores(first, centres), relation_scores(second, centres.flip(0))])
    own_scores, other_scores = scores.T
    return float((own_scores - other_scores).mean()) > MAY_BE_SAME
