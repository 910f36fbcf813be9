"""The hybrid router: an edit speaks where its question is asked of a subject that was named before.

Two kinds of evidence, each a cosine to an edit's key, must both reach their floor:

    relation   the token's own activation at the edited layer, which says what is being asked for
    subject    the base's value vectors of the tokens before, of which the nearest counts, which say of whom

Alone, the first confuses like questions about unlike subjects, and the second unlike questions about one subject. The
floor of an edit's relation is the router's, or higher where the edit's own prompt and answer come near its key at a
token at which it must not speak. Whether a floor is reached is asked of the subject only where some relation reaches
its own: elsewhere a token costs one product with the relation keys.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from wise.errors import ConfigError
from wise.memory.context import ContextReader, visible
from wise.memory.grouped import NO_SLOT
from wise.memory.side_memory import Evidence, KeyedBank, Route, Router, SlotBank
from wise.memory.state import KeySpace

ABSENT = -2.0
"""In place of the evidence for what cannot be: below every cosine."""


class HybridRouter(Router):
    """Keys of both kinds for every edit, one for each place at which it speaks."""

    key_slots: Tensor
    relation_keys: Tensor
    relation_projection: Tensor
    relation_shift: Tensor
    subject_keys: Tensor
    subject_projection: Tensor
    subject_shift: Tensor
    relation_floors: Tensor
    subject_floor: Tensor

    def __init__(
        self,
        *,
        reader: ContextReader,
        keys: Tensor,
        key_slots: Tensor,
        thresholds: Tensor,
        subject: KeySpace,
        relation: KeySpace,
    ) -> None:
        """keys `[n, s + r]`: a unit subject key and a unit relation key each; key_slots `[n]`.

        thresholds `[k]`: of each slot, the relation floor of its edit where that is above the space's.

        Raises ConfigError where a space has no floor.
        """
        super().__init__()
        if subject.floor is None or relation.floor is None:
            raise ConfigError("the router's spaces have no floors: they were made for mode='retrieve'")
        size = len(subject.projection)
        self.reader = reader
        self.key_slots = key_slots
        self.subject_keys, self.relation_keys = keys[:, :size].float(), keys[:, size:].float()
        self.subject_projection, self.relation_projection = subject.projection, relation.projection
        self.subject_shift, self.relation_shift = subject.shift, relation.shift
        self.relation_floors = thresholds.float()[key_slots].clamp(min=relation.floor)
        self.subject_floor = torch.tensor(subject.floor)

    def forward(self, activation: Tensor, bank: SlotBank) -> Route:
        if not isinstance(bank, KeyedBank):
            raise ConfigError(f"a {type(bank).__name__} does not say what each key adds: a KeyedBank was expected")
        key, value = self._chosen(activation, everywhere=False)
        slot = torch.where(value >= 1, self.key_slots[key], NO_SLOT)
        delta = bank.of_keys(torch.where(value >= 1, key, NO_SLOT), activation)
        return Route(slot, value, torch.ones_like(value), delta)

    def evidence(self, activation: Tensor, bank: SlotBank) -> Evidence:
        """The lesser of relation and subject over their floors, of the edit for which it is largest.

        Every subject is looked for at every token, so it costs more than `forward`.
        """
        key, value = self._chosen(activation, everywhere=True)
        return Evidence.of(self(activation, bank), value, self.key_slots[key], key)

    def _chosen(self, activation: Tensor, *, everywhere: bool) -> tuple[Tensor, Tensor]:
        """Per token of `[n, f]`: see `choose`."""
        values = self.reader.values
        if values is None or len(activation) % len(values):
            seen = "none" if values is None else f"{len(values)} rows"
            raise ConfigError(
                f"{len(activation)} tokens reach the side memory and attention saw {seen}: run the model as a whole"
            )
        query = linear(activation.float(), self.relation_projection, self.relation_shift)
        relation = normalize(query, dim=-1) @ self.relation_keys.T
        how = _operator if torch.compiler.is_compiling() else choose
        found: tuple[Tensor, Tensor] = how(
            relation,
            values,
            self.reader.mask,
            self.subject_projection,
            self.subject_shift,
            self.subject_keys,
            self.relation_floors,
            self.subject_floor,
            everywhere,
        )
        return found


def choose(
    relation: Tensor,
    values: Tensor,
    mask: Tensor | None,
    projection: Tensor,
    shift: Tensor,
    keys: Tensor,
    relation_floors: Tensor,
    subject_floor: Tensor,
    everywhere: bool,
) -> tuple[Tensor, Tensor]:
    """Per token `[n]`: the key of the edit chosen, and its evidence, at least 1 exactly where it reaches both floors.

    Of several edits that do, the one with the most evidence in sum; where none does, the one that comes nearest.

    Args:
        relation: `[n, edits]` cosines; the tokens of one row after those of another.
        values: `[rows, tokens, v]` what attention sees; `mask`: which of it each token sees (`visible`).
        projection, shift, keys: `[s, v]`, `[s]`, `[edits, s]` of the subject space.
        relation_floors, subject_floor: `[edits]`, and one number.
        everywhere: look for subjects also where no relation reaches its floor; there its evidence counts alone if not.
    """
    best = (relation / relation_floors).max(-1)
    key, value = best.indices.clone(), best.values.clone()
    asking = torch.arange(len(value), device=value.device)
    if not everywhere:
        asking = asking[(relation >= relation_floors).any(-1)]
    width = len(relation) // len(values)
    for row in torch.unique(asking // width).tolist():
        here = asking[asking // width == row]
        context = normalize(linear(values[row].float(), projection, shift), dim=-1) @ keys.T  # [tokens, edits]
        seen = visible(mask, row, here % width, width, values.shape[1])
        subject = torch.stack([context.masked_fill(~s[:, None], ABSENT).max(0).values for s in seen])
        key[here], value[here] = _weighed(relation[here], subject, relation_floors, subject_floor)
    under = torch.nextafter(value.new_tensor(1.0), value.new_tensor(0.0))
    silent = relation.gather(-1, key[:, None])[:, 0] < relation_floors[key]
    return key, torch.where(silent, value.minimum(under), value)


def _weighed(
    relation: Tensor, subject: Tensor, relation_floors: Tensor, subject_floor: Tensor
) -> tuple[Tensor, Tensor]:
    """`[m, edits]` each -> the edit chosen and its evidence, `[m]` each."""
    lesser = torch.minimum(relation / relation_floors, subject / subject_floor)
    reached = (relation >= relation_floors) & (subject >= subject_floor)
    opened = reached.any(-1)
    most = torch.where(reached, relation + subject, ABSENT).argmax(-1)
    key = torch.where(opened, most, lesser.argmax(-1))
    value = lesser.gather(-1, key[:, None])[:, 0]
    under = torch.nextafter(value.new_tensor(1.0), value.new_tensor(0.0))
    return key, torch.where(opened, value.clamp(min=1), value.minimum(under))


_operator = torch.library.custom_op("wise::choose", choose, mutates_args=())
"""The same as one operator, which `torch.compile` does not look into: it branches on what it finds."""


@_operator.register_fake
def _(relation: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return relation.new_empty(len(relation), dtype=torch.long), relation.new_empty(len(relation))
