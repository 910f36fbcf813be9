"""From the truth to what serves it: the side memory of a snapshot, on its device and in its precision."""

from __future__ import annotations

import torch
from torch import Tensor

from wise.config import WiseConfig
from wise.errors import ConfigError
from wise.memory.context import ContextReader
from wise.memory.grouped import NO_SLOT
from wise.memory.side_memory import Router, SideMemory, SlotBank, ValueBank
from wise.memory.slot import MaskedDenseSlot, ValueSlot
from wise.memory.state import MemoryState
from wise.router.activation import ActivationRouter, RetrievalRouter
from wise.router.hybrid import HybridRouter


def assemble(
    state: MemoryState,
    config: WiseConfig,
    *,
    reader: ContextReader | None,
    device: torch.device,
    dtype: torch.dtype,
) -> SideMemory | None:
    """The side memory that serves `state`; None where there is nothing to serve.

    reader: what `hybrid` looks for subjects in.
    dtype: precision of what slots add, that of the model they stand in; all that routes is float32.
    """
    if not state.edits:
        return None
    if config.mode == "hybrid":
        return _hybrid(state, reader, device, dtype)
    weights = torch.stack([_weight(slot) for slot in state.slots]).to(device=device, dtype=dtype)
    thresholds = torch.tensor([slot.threshold for slot in state.slots])
    router: Router
    if config.mode == "merge":
        router = ActivationRouter(thresholds)
    elif state.key_space is None:
        raise ConfigError("mode='retrieve' needs a key space and this memory has none")
    else:
        keys, slots = state.index.matrix()
        router = RetrievalRouter(
            thresholds=thresholds,
            keys=keys,
            key_slots=slots,
            projection=state.key_space.projection,
            mean=state.key_space.mean,
            floor=config.key_floor,
        )
    return SideMemory(SlotBank(weights), router.to(device))


def _hybrid(
    state: MemoryState, reader: ContextReader | None, device: torch.device, dtype: torch.dtype
) -> SideMemory:
    if reader is None or state.key_space is None or state.subject_space is None:
        raise ConfigError("mode='hybrid' needs spaces of relations and subjects, and this memory has none")
    keys, slots = state.index.matrix()
    router = HybridRouter(
        reader=reader,
        keys=keys,
        key_slots=slots,
        thresholds=torch.tensor([slot.threshold for slot in state.slots]),
        subject=state.subject_space,
        relation=state.key_space,
    )
    bank = _values(state, slots, dtype)
    return SideMemory(bank.to(device), router.to(device))


def _values(state: MemoryState, key_slots: Tensor, dtype: torch.dtype) -> ValueBank:
    """key_slots: `[keys]`, the keys of a slot side by side and in their order."""
    held = [_value_slot(slot) for slot in state.slots]
    counts = torch.tensor([len(slot.values) for slot in held])
    keys = torch.bincount(key_slots, minlength=len(held))
    for slot, given, wanted in zip(held, keys.tolist(), counts.tolist(), strict=True):
        if given != wanted:
            raise ConfigError(f"slot {slot.id} has {wanted} values and its edit {given} keys")
    own = key_slots.argsort(stable=True)  # the keys of the first slot, of the second, ...
    place = torch.cat([slot.places for slot in held])
    places = torch.full((len(held), int(place.max()) + 1), NO_SLOT)
    places[torch.arange(len(held)).repeat_interleave(counts), place] = own
    weights = torch.empty(len(own), held[0].values.shape[1])
    weights[own] = torch.cat([slot.values for slot in held])
    return ValueBank(weights.to(dtype), places)


def _value_slot(slot: object) -> ValueSlot:
    if not isinstance(slot, ValueSlot):
        raise ConfigError(f"a {type(slot).__name__} cannot be served in mode='hybrid'")
    return slot


def _weight(slot: object) -> Tensor:
    if not isinstance(slot, MaskedDenseSlot):
        raise ConfigError(f"a {type(slot).__name__} cannot be served beside masked-dense slots")
    return slot.weight
