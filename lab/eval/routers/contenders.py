"""The routers that are compared, each over the edits of one memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wise.architectures import ValueProjection
from wise.config import WiseConfig
from wise.edits import Edit
from wise.errors import ConfigError
from wise.lab.editors.embedding import Embedder
from wise.lab.eval.routers.reading import Reading, read
from wise.lab.eval.routers.scorers import (
    Cosine,
    Embedded,
    EpsilonBall,
    LargestActivation,
    Named,
    Scorer,
    Served,
)
from wise.lab.eval.routing.scores import served
from wise.lab.eval.work import Progress
from wise.memory.key_space import KeySpace
from wise.memory.side_memory import SideMemory
from wise.memory.slot import AnswerSlot
from wise.memory.state import MemoryState
from wise.model import WiseModel, wrap
from wise.router.assemble import assemble
from wise.router.hybrid import RouterInputs
from wise.training.router.builtin_questions import builtin_questions
from wise.training.wordings import Wordings, question

ACTIVATION, SERVED = "activation (WISE)", "wise-retrieve"
EMBEDDING, HYBRID = "text embedding", "hybrid"


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
        space = wrapped.trainer.key_space
        if not isinstance(space, KeySpace):
            raise RuntimeError("mode='retrieve' has no space of activations")
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
    embedder: Embedder | None


def contenders(model: WiseModel, slots: SlotMemory, known: Known) -> Mapping[str, Scorer]:
    """Every router over one set of edits, by name.

    model: in mode `hybrid`, without edits.

    Raises ConfigError for a model in another mode.
    """
    edits, places = slots.edits, (model.projection, known.sliced.place)
    with model.evaluating(), model.disabled():
        found = dict(_of_slots(slots, known.sliced.place.layer))
        found |= _of_activations(edits, places, read(model, places, [edit.prompt for edit in edits]), known.sliced)
        if known.embedder is not None:
            keys = known.embedder([edit.prompt for edit in edits])
            found[EMBEDDING] = Embedded(candidates=_single(edits), embedder=known.embedder, keys=keys)
        found[HYBRID] = _hybrid(model, edits)
    return found


def _of_slots(slots: SlotMemory, block: int) -> Iterator[tuple[str, Scorer]]:
    weights = slots.memory.bank.weights.float().cpu()
    yield ACTIVATION, LargestActivation(candidates=slots.slots, block=block, weights=weights)
    owners = tuple(frozenset([owner]) for owner in slots.owners)
    yield SERVED, Served(candidates=owners, block=block, memory=slots.memory.cpu())


def _of_activations(
    edits: Sequence[Edit], places: Sequence[ValueProjection], readings: Sequence[Reading], sliced: Sliced
) -> dict[str, Scorer]:
    """At the blocks that are edited in either mode, and whitened at that of `retrieve`."""
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


def _hybrid(model: WiseModel, edits: Sequence[Edit]) -> Scorer:
    """The router of mode `hybrid` over all of the edits, with the keys and thresholds that writing them gives."""
    inputs = model.inputs
    if inputs is None:
        raise ConfigError("the hybrid router is compared on a model in mode='hybrid'")
    state = findable(model, edits, inputs)
    memory = assemble(state, model.wise_config, inputs=inputs, device=torch.device("cpu"), dtype=torch.float32)
    if memory is None:
        raise ConfigError("no edit was given: routers are compared over one at least")
    return Named(candidates=(*_single(edits), frozenset()), memory=memory, sequences=inputs.sequences)


def findable(model: WiseModel, edits: Sequence[Edit], inputs: RouterInputs) -> MemoryState:
    """A memory whose edits are found as those of a written one and add nothing: values are not fitted."""
    wordings, encoder = Wordings(model.encoder, inputs.reader, builtin_questions()), model.encoder
    slots, keys = [], {}
    for i, edit in enumerate(edits):
        own = wordings.keys(edit)
        said = [] if encoder.template is None else encoder.chat_target(edit.target)
        ids = [*said, *encoder.target(question(edit), edit.target)]
        slot = AnswerSlot(
            id=i,
            edit_ids=(edit.id,),
            scores=(wordings.threshold(edit, own),),
            values=torch.zeros(len(ids), model.projection.out_features),
            ids=torch.tensor(ids),
            counts=torch.tensor([len(said), len(ids) - len(said)]),
            features=model.projection.in_features,
        )
        slots.append(slot)
        keys[edit.id] = own.half()
    return MemoryState(edits=tuple(edits), slots=tuple(slots), keys=keys, key_space=inputs.reader.key_space)


def _single(edits: Sequence[Edit]) -> tuple[frozenset[str], ...]:
    return tuple(frozenset([edit.id]) for edit in edits)
