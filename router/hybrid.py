"""The hybrid router: an edit speaks where its question is asked of a subject that was named before.

Two kinds of evidence, each a cosine to an edit's key, must both reach their floor:

    relation   the token's own activation at the edited layer, which says what is being asked for; a trained router
               looks at the value vectors of the last tokens beside it
    subject    the base's value vectors of the tokens before, of which the nearest counts, which say of whom

Alone, the first confuses like questions about unlike subjects, and the second unlike questions about one subject. The
floor of an edit's relation is the router's, or higher where the edit's own prompt and answer come near its key at a
token at which it must not speak. Of whom is asked only where some relation is reached, and only for the edits whose
relation it is: elsewhere a token costs one product with the centres of the relation keys (`screen`), so that ten
thousand edits cost hardly more than a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize, pad, relu

from wise.errors import ConfigError
from wise.memory.context import ContextReader, visible
from wise.memory.grouped import NO_SLOT
from wise.memory.key_space import APART, HIGHEST, KeySpace, Layer, of_whom
from wise.memory.side_memory import Evidence, KeyedBank, Resident, Route, Router, SlotBank
from wise.router.screen import name_screen, screen

ABSENT = -2.0
"""In place of the evidence for what cannot be: below every cosine."""
LEAST_WAY = 1e-3
"""From a floor to 1, at least, so that a floor of 1 can be divided by."""
WELL_BELOW = 1e-3
"""How far the gate's logit lies under what any key needs, at least, for a token to be passed over unseen."""
AT_ONCE = 256
"""Tokens compared with all keys in one product."""


class Hidden(Resident):
    """A hidden layer where the model is."""

    inner: Tensor
    bias: Tensor
    outer: Tensor

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.inner, self.bias, self.outer = layer.inner.float(), layer.bias.float(), layer.outer.float()

    def forward(self, x: Tensor) -> Tensor:
        return linear(relu(linear(x, self.inner, self.bias)), self.outer)


class Projector(Resident):
    """Brings activations into the space of relations where the model is."""

    projection: Tensor
    shift: Tensor
    offset: Tensor

    def __init__(self, space: KeySpace) -> None:
        super().__init__()
        self.projection, self.shift = space.projection.float(), space.shift
        self.recent = space.recent
        self.bend = None if space.bend is None else Hidden(space.shifted(space.bend))
        self.gate = None if space.gate is None else Hidden(space.shifted(space.gate.layer))
        self.offset = torch.tensor(0.0 if space.gate is None else space.gate.offset)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 `[n, f]`, or `[n, f + recent v]` -> unit `[n, r]`."""
        key = linear(x, self.projection, self.shift)
        return normalize(key if self.bend is None else key + self.bend(x), dim=-1)

    def asks(self, x: Tensor) -> Tensor:
        """How surely a question ends at each token: `[n]`."""
        return x.new_ones(len(x)) if self.gate is None else torch.sigmoid(self.gate(x)[:, 0] + self.offset)


def _above_text(keys: Tensor, space: KeySpace) -> Tensor:
    """Of each key `[n, r]` the cosine that no token of the space's running text reaches."""
    if space.text is None:
        return keys.new_full((len(keys),), ABSENT)
    return ((keys @ space.text.T).amax(-1) + APART).clamp(max=HIGHEST)


class HybridRouter(Router):
    """Keys of both kinds for every edit, one for each place at which it speaks."""

    key_slots: Tensor
    gated: Tensor
    relation_keys: Tensor
    relation_floors: Tensor
    least_floor: Tensor
    centres: Tensor
    bounds: Tensor
    free_centres: Tensor
    free_bounds: Tensor
    subject_keys: Tensor
    subject_middles: Tensor
    subject_bounds: Tensor
    subject_projection: Tensor
    subject_shift: Tensor
    subject_floor: Tensor

    def __init__(
        self,
        *,
        reader: ContextReader,
        keys: Tensor,
        key_slots: Tensor,
        floors: Tensor,
        subject: KeySpace,
        relation: KeySpace,
        gated: Tensor,
    ) -> None:
        """keys `[n, parts s + r]`: a subject key and a unit relation key each; key_slots `[n]`.

        floors `[n]`: of each key, its relation floor where that is above the space's.

        gated: `[n]` bool: a key counts only as much as a question ends. One that does not is kept above running text.

        Raises ConfigError where a space has no floor.
        """
        super().__init__()
        self.parts, size = subject.parts, subject.parts * len(subject.projection)
        self.reader = reader
        self.key_slots = key_slots
        self.subject_keys, self.relation_keys = (part.float().contiguous() for part in (keys[:, :size], keys[:, size:]))
        self.relation = Projector(relation)
        self.subject_projection, self.subject_shift = subject.projection, subject.shift
        edits = int(key_slots.max()) + 1
        floors = floors.float().clamp(min=relation.floor(edits))
        floors[~gated] = floors[~gated].maximum(_above_text(self.relation_keys[~gated], relation))
        self.relation_floors = floors
        self.gated = gated
        self.subject_floor = torch.tensor(subject.floor(edits))
        self.subject_middles, self.subject_bounds = name_screen(self.subject_keys, self.parts, self.subject_floor)
        self.least_floor = torch.where(gated, self.relation_floors, torch.inf).min()
        self.needed = -math.inf  # of the gate's logit, before its offset: what lies under it is passed over
        least = float(self.least_floor)
        if relation.gate is not None and bool(gated.all()) and 0 < least < 1:
            self.needed = math.log(least / (1 - least)) - relation.gate.offset - WELL_BELOW
        self.centres, self.bounds = screen(self.relation_keys[gated], self.relation_floors[gated])
        self.free_centres, self.free_bounds = screen(self.relation_keys[~gated], self.relation_floors[~gated])

    def forward(self, activation: Tensor, bank: SlotBank) -> Route:
        if not isinstance(bank, KeyedBank):
            raise ConfigError(f"a {type(bank).__name__} does not say what each key adds: a KeyedBank was expected")
        key, value = self._in_float32(activation, everywhere=False)
        opened = value >= 1
        if not torch.compiler.is_compiling() and not bool(opened.any()):
            return Route(torch.full_like(key, NO_SLOT), value, torch.ones_like(value), None)
        slot = torch.where(opened, self.key_slots[key], NO_SLOT)
        delta = bank.of_keys(torch.where(opened, key, NO_SLOT), activation)
        return Route(slot, value, torch.ones_like(value), delta)

    def silent(self, activation: Tensor) -> bool:
        """The gate is far from open everywhere, as at nearly every token that is decoded.

        What `forward` would find, in a third of its operations: they are what a small model's token costs.
        """
        compiling = torch.compiler.is_compiling() or torch.is_autocast_enabled(activation.device.type)
        if compiling or self.needed == -math.inf or self.relation.gate is None:
            return False
        return bool((self.relation.gate(activation.float()) < self.needed).all())

    def evidence(self, activation: Tensor, bank: SlotBank) -> Evidence:
        """The lesser of how far relation and subject pass their floors, of the edit for which it is largest.

        Every subject is looked for at every token, so it costs more than `forward`.
        """
        key, value = self._in_float32(activation, everywhere=True)
        return Evidence.of(self(activation, bank), value, self.key_slots[key], key)

    def _in_float32(self, activation: Tensor, *, everywhere: bool) -> tuple[Tensor, Tensor]:
        """`_sought`, whatever the model is cast to: a cosine of bf16 is not told from a floor that lies near."""
        device = activation.device.type
        if not torch.is_autocast_enabled(device):
            return self._sought(activation.float(), everywhere=everywhere)
        with torch.autocast(device, enabled=False):
            return self._sought(activation.float(), everywhere=everywhere)

    def _sought(self, x: Tensor, *, everywhere: bool) -> tuple[Tensor, Tensor]:
        """Per token of `[n, f]`: the key of the edit chosen and its evidence, see `choose`; 0 where none was sought."""
        asks = self.relation.asks(x)
        if everywhere or torch.compiler.is_compiling() or len(self.free_centres):
            return self._chosen(x, asks, torch.arange(len(x), device=x.device), everywhere=everywhere)
        key, value = torch.zeros(len(x), dtype=torch.long, device=x.device), torch.zeros_like(asks)
        places = (asks >= self.least_floor).nonzero()[:, 0]
        if len(places) == 0:  # nearly every token
            return key, value
        found = self._chosen(x, asks, places)
        return key.index_copy(0, places, found[0]), value.index_copy(0, places, found[1])

    def _chosen(
        self, x: Tensor, asks: Tensor, places: Tensor, *, everywhere: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Of all tokens `[n, f]`, for those at `places`: the key of the edit chosen and its evidence, see `choose`."""
        values = self.reader.recorded
        if values is None or len(x) % len(values):
            seen = "none" if values is None else f"{len(values)} rows"
            raise ConfigError(
                f"{len(x)} tokens reach the side memory and attention saw {seen}: run the model as a whole"
            )
        found: tuple[Tensor, Tensor] = (_operator if torch.compiler.is_compiling() else choose)(
            self.relation(self.reader.beside(x, places, self.relation.recent)),
            asks[places],
            places,
            len(x) // len(values),
            self.least_floor,
            self.centres,
            self.bounds,
            self.free_centres,
            self.free_bounds,
            self.gated,
            self.relation_keys,
            self.relation_floors,
            values,
            self.reader.mask,
            self.subject_projection,
            self.subject_shift,
            self.subject_keys,
            self.subject_middles,
            self.subject_bounds,
            self.subject_floor,
            self.parts,
            everywhere,
        )
        return found


def choose(
    query: Tensor,
    asks: Tensor,
    places: Tensor,
    width: int,
    least_floor: Tensor,
    centres: Tensor,
    bounds: Tensor,
    free_centres: Tensor,
    free_bounds: Tensor,
    gated: Tensor,
    relation_keys: Tensor,
    relation_floors: Tensor,
    values: Tensor,
    mask: Tensor | None,
    projection: Tensor,
    shift: Tensor,
    subject_keys: Tensor,
    subject_middles: Tensor,
    subject_bounds: Tensor,
    subject_floor: Tensor,
    parts: int,
    everywhere: bool,
) -> tuple[Tensor, Tensor]:
    """For `[m]` tokens: the key of the edit chosen, and its evidence, at least 1 exactly where it reaches both floors.

    Of several edits that do, the one with the most evidence in sum; where none does, the one that comes nearest of
    those that neither relation nor screen rules out, or the first with evidence 0 where there is none.

    Args:
        query, asks: `[m, r]` unit, and `[m]` what its cosine to a gated key counts for.
        places: `[m]` ascending; those of one row of `width` tokens after those of another.
        least_floor, centres, bounds: one number, `[c, r]`, `[c]` of the gated relation keys (`screen`).
        free_centres, free_bounds: the same of the others.
        gated, relation_keys, relation_floors: `[edits]`, `[edits, r]`, `[edits]`.
        values: `[rows, heads, tokens, size]` what attention sees; `mask`: which of it each token sees (`visible`).
        projection, shift, subject_keys: as `named` takes them, and parts; subject_floor: one number.
        subject_middles, subject_bounds: `[edits, s]`, `[edits]` of the subjects' keys (`name_screen`).
        everywhere: look at every edit at every token, and not only at those whose relation it reaches.
    """
    key, value = torch.zeros_like(places), asks.new_zeros(len(places))
    if len(places) == 0:
        return key, value
    asking = torch.ones_like(places, dtype=torch.bool)
    if not everywhere:
        asking = (asks >= least_floor) & (query @ centres.T >= bounds).any(-1)
        asking |= (query @ free_centres.T >= free_bounds).any(-1)
    for here in _parts(asking.nonzero()[:, 0], places // width):
        relation = (query[here] @ relation_keys.T) * torch.where(gated, asks[here, None], 1)
        sought = torch.ones_like(relation, dtype=torch.bool) if everywhere else relation >= relation_floors
        here, edits, relation, sought = _left(here, torch.arange(len(gated), device=here.device), relation, sought)
        if len(edits) == 0:
            continue
        row = int(places[here[0]]) // width
        vectors = values[row].transpose(0, 1).flatten(1).float()  # [tokens, v]
        seen = visible(mask, row, places[here] % width, width, len(vectors))
        if not everywhere:
            middle = named(vectors, seen, projection, shift, subject_middles[edits], 1)
            here, edits, relation, sought = _left(here, edits, relation, sought & (middle >= subject_bounds[edits]))
            seen = visible(mask, row, places[here] % width, width, len(vectors))
        if len(edits):
            subject = named(vectors, seen, projection, shift, subject_keys[edits], parts)
            best, value[here] = _weighed(relation, subject, sought, relation_floors[edits], subject_floor)
            key[here] = edits[best]
    return key, value


def _left(here: Tensor, edits: Tensor, relation: Tensor, sought: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of tokens `[m]` and edits `[n]` those of which any is sought; relation and sought `[m, n]`.

    Which edits are sought at a token stays: what it is told to have come near must not depend on who is read beside it.
    """
    tokens, kept = sought.any(-1), sought.any(0)
    return here[tokens], edits[kept], relation[tokens][:, kept], sought[tokens][:, kept]


def named(values: Tensor, seen: Tensor, projection: Tensor, shift: Tensor, keys: Tensor, parts: int) -> Tensor:
    """How near each key's subject comes in what each of `m` tokens sees, `ABSENT` where it sees nothing: `[m, edits]`.

    As `KeySpace.named` has it: values `[tokens, v]` of a row; seen `[m, tokens]` bool; projection `[s, v]`, or
    `[s, 2 v]` where a subject is known by the token before its last as well, which counts where it is seen too; keys
    `[edits, parts s]`, see `of_whom`.
    """
    keys = keys.view(-1, len(projection))
    own = linear(values, projection[:, : values.shape[1]], shift)
    alone = normalize(own, dim=-1) @ keys.T
    nearest = _largest(alone, seen)
    if projection.shape[1] > values.shape[1]:
        own[1:] += linear(values[:-1], projection[:, values.shape[1] :])
        both = normalize(own, dim=-1) @ keys.T
        nearest = torch.maximum(nearest, _largest(both, seen & pad(seen[:, :-1], (1, 0))))
    return of_whom(nearest, parts)


def _largest(cosines: Tensor, seen: Tensor) -> Tensor:
    """Of `[tokens, keys]` over those that each of `m` tokens sees, `[m, tokens]` bool: `[m, keys]`, `ABSENT` for none.

    A token that sees all that the one before it does adds to what was found there.
    """
    none, shown = cosines.new_full(cosines.shape[1:], ABSENT), seen.cpu()
    most, before = none, torch.zeros_like(shown[0])
    found = []
    for one in shown:
        if bool((before & ~one).any()):  # as under a sliding window
            most, before = none, torch.zeros_like(one)
        new = (one & ~before).nonzero()[:, 0]
        if len(new):
            most = torch.maximum(most, cosines[new.to(cosines.device)].amax(0))
        found.append(most)
        before = one
    return torch.stack(found)


def _parts(tokens: Tensor, rows: Tensor) -> Iterator[Tensor]:
    """`tokens` `[m]`, ascending, those of each of their rows by themselves and no more than `AT_ONCE`."""
    if len(tokens):
        _, counts = torch.unique_consecutive(rows[tokens], return_counts=True)
        for own in torch.split(tokens, counts.tolist()):
            yield from torch.split(own, AT_ONCE)


def _weighed(
    relation: Tensor, subject: Tensor, sought: Tensor, relation_floors: Tensor, subject_floor: Tensor
) -> tuple[Tensor, Tensor]:
    """`[m, edits]` each -> the edit chosen, of those sought, and its evidence, `[m]` each."""
    evidence = weighed(relation, subject, relation_floors, subject_floor)
    reached = evidence >= 1
    most = torch.where(reached, relation + subject, ABSENT).argmax(-1)
    key = torch.where(reached.any(-1), most, evidence.masked_fill(~sought, -torch.inf).argmax(-1))
    return key, evidence.gather(-1, key[:, None])[:, 0]


def weighed(relation: Tensor, subject: Tensor, relation_floors: Tensor, subject_floor: Tensor) -> Tensor:
    """The evidence of every edit, `[m, edits]` each: at least 1 exactly where it reaches both floors.

    Each cosine counts in shares of the way from its floor to 1, and the lesser of them is it: as a multiple of the
    floor it could not tell a subject named in so many words from one that hardly passes.
    """
    lesser = 1 + torch.minimum(_passed(relation, relation_floors), _passed(subject, subject_floor))
    reached = (relation >= relation_floors) & (subject >= subject_floor)
    under = torch.nextafter(lesser.new_tensor(1.0), lesser.new_tensor(0.0))
    return torch.where(reached, lesser.clamp(min=1), lesser.minimum(under))


def _passed(cosine: Tensor, floor: Tensor) -> Tensor:
    return (cosine - floor) / (1 - floor).clamp(min=LEAST_WAY)


_operator = torch.library.custom_op("wise::choose", choose, mutates_args=())
"""The same as one operator, which `torch.compile` does not look into: it branches on what it finds."""


@_operator.register_fake
def _(query: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return query.new_empty(len(query), dtype=torch.long), query.new_empty(len(query))
