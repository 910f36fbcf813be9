"""The routers that are compared, each over the edits of one memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wise.architectures import ValueProjection
from wise.config import WiseConfig
from wise.edits import Edit
from wise.errors import ConfigError
from wise.eval.routers.reading import Reading, read
from wise.eval.routers.scorers import (
    EVIDENCE,
    Cosine,
    Embedded,
    EpsilonBall,
    Hybrid,
    LargestActivation,
    Scorer,
    Served,
)
from wise.eval.routing.scores import served
from wise.eval.work import Progress
from wise.memory.key_space import KeySpace
from wise.memory.side_memory import SideMemory
from wise.model import WiseModel, wrap
from wise.training.baselines.embedding import Embedder
from wise.training.evidence import Spaces, observe
from wise.training.router_training import LearnedSpaces

ACTIVATION, SERVED = "activation (WISE)", "wise-retrieve"
EMBEDDING = "text embedding"
UNTRAINED, TRAINED = "hybrid, untrained", "hybrid, trained"


@dataclass(frozen=True, kw_only=True, eq=False)
class SlotMemory:
    """Edits written into slots as mode `retrieve` does, apart from the model that they were made on."""

    edits: tuple[Edit, ...]
    """All that were asked for."""
    memory: SideMemory
    slots: tuple[frozenset[str], ...]
    """Ids of the edits that each holds; those that did not verify are in none."""
    owners: tuple[str, ...]
    """The edit of each key."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sliced:
    """What mode `retrieve` makes of a base and of several sets of edits."""

    place: ValueProjection
    space: KeySpace
    """Whitens activations there."""
    memories: tuple[SlotMemory, ...]


def write_slots(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Sequence[Sequence[Edit]],
    *,
    seed: int,
    progress: Progress | None = None,
) -> Sliced:
    """Edits the model with each set alone, and gives it back as it was.

    Raises ConfigError where no edit of a set holds.
    """
    wrapped = wrap(model, tokenizer, WiseConfig(mode="retrieve", seed=seed))
    try:
        memories = [_written(wrapped, edits, f"editing {n + 1}", progress) for n, edits in enumerate(sets)]
        space = wrapped.trainer.background.key_space
    finally:
        wrapped.unwrap()
    return Sliced(place=wrapped.projection, space=space, memories=tuple(memories))


def _written(wrapped: WiseModel, edits: Sequence[Edit], name: str, progress: Progress | None) -> SlotMemory:
    wrapped.reset()
    wrapped.edit(edits, progress=None if progress is None else lambda done: progress(name, done, len(edits)))
    return SlotMemory(
        edits=tuple(edits),
        memory=served(wrapped),
        slots=tuple(frozenset(slot.edit_ids) for slot in wrapped.state.slots),
        owners=wrapped.state.key_owners,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """What routers may know beside the edits."""

    sliced: Sliced
    learned: LearnedSpaces | None
    """Of a trained router."""
    embedder: Embedder | None


def contenders(model: WiseModel, slots: SlotMemory, known: Known) -> Mapping[str, Scorer]:
    """Every router over one set of edits, by name.

    model: in mode `hybrid`, untrained and without edits.
    """
    edits, places = slots.edits, (model.projection, known.sliced.place)
    with model.evaluating(), model.disabled():
        found = dict(_of_slots(slots, known.sliced.place.layer))
        found |= _of_activations(edits, places, read(model, places, [edit.prompt for edit in edits]), known.sliced)
        if known.embedder is not None:
            keys = known.embedder([edit.prompt for edit in edits])
            found[EMBEDDING] = Embedded(candidates=_single(edits), embedder=known.embedder, keys=keys)
        background, learned = model.trainer.background, known.learned
        found |= _hybrids(model, edits, UNTRAINED, background)
        if learned is not None:
            spaces = replace(background, key_space=learned.relation, subject_space=learned.subject)
            found |= _hybrids(model, edits, TRAINED, spaces)
    return found


def _of_slots(slots: SlotMemory, block: int) -> Iterator[tuple[str, Scorer]]:
    weights = slots.memory.bank.weights.float().cpu()
    yield ACTIVATION, LargestActivation(candidates=slots.slots, block=block, weights=weights)
    owners = tuple(frozenset([owner]) for owner in slots.owners)
    yield SERVED, Served(candidates=owners, block=block, memory=slots.memory.cpu())


def _of_activations(
    edits: Sequence[Edit], places: Sequence[ValueProjection], readings: Sequence[Reading], sliced: Sliced
) -> dict[str, Scorer]:
    """At the blocks that are edited in either mode; whitened at that of `retrieve`, at the other it is the hybrid's
    untrained relation evidence."""
    found: dict[str, Scorer] = {}
    single = _single(edits)
    blocks = sorted({place.layer for place in places})
    keys = {block: torch.cat([reading.activations[block] for reading in readings]) for block in blocks}
    for block in blocks:
        found[f"epsilon-ball, block {block}"] = EpsilonBall(candidates=single, block=block, keys=keys[block])
    for block in blocks:
        found[f"cosine, block {block}"] = Cosine(candidates=single, block=block, keys=keys[block])
    block = sliced.place.layer
    name = f"whitened cosine, block {block}"
    found[name] = Cosine(candidates=single, block=block, keys=keys[block], space=sliced.space)
    return found


def _hybrids(model: WiseModel, edits: Sequence[Edit], name: str, spaces: Spaces) -> dict[str, Scorer]:
    subject = spaces.subject_space
    if model.reader is None or subject is None:
        raise ConfigError("the hybrid router is compared on a model in mode='hybrid'")
    recent, surroundings = spaces.key_space.recent, subject.surroundings
    seen = observe(model.trainer.spliced, model.reader, model.encoder, edits, recent, surroundings)
    keys = torch.cat(seen.keys(spaces))
    size = subject.parts * len(subject.projection)
    return {
        f"{name}: {by}": Hybrid(
            candidates=_single(edits),
            block=model.projection.layer,
            by=by,
            relation=spaces.key_space,
            subject=subject,
            relation_keys=keys[:, size:],
            subject_keys=keys[:, :size].contiguous(),
        )
        for by in EVIDENCE
    }


def _single(edits: Sequence[Edit]) -> tuple[frozenset[str], ...]:
    return tuple(frozenset([edit.id]) for edit in edits)
