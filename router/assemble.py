"""From the truth to what serves it: the side memory of a snapshot, on its device and in its precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wise.config import WiseConfig
from wise.errors import ConfigError
from wise.memory.context import ContextReader
from wise.memory.side_memory import Router, SideMemory
from wise.memory.slot import EditSlot, make_bank
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
    bank = make_bank(state.slots, None, dtype)
    thresholds = torch.tensor([slot.threshold for slot in state.slots])
    router: Router
    if config.mode == "merge":
        router = ActivationRouter(thresholds)
    elif state.key_space is None:
        raise ConfigError("mode='retrieve' needs a key space and this memory has none")
    else:
        keys, slots = state.key_matrix()
        router = RetrievalRouter(
            thresholds=thresholds,
            keys=keys,
            key_slots=slots,
            projection=state.key_space.projection,
            mean=state.key_space.mean,
            floor=config.key_floor,
        )
    return SideMemory(bank.to(device), router.to(device))


def _hybrid(
    state: MemoryState, reader: ContextReader | None, device: torch.device, dtype: torch.dtype
) -> SideMemory:
    if reader is None or state.key_space is None or state.subject_space is None:
        raise ConfigError("mode='hybrid' needs spaces of relations and subjects, and this memory has none")
    keys, slots = state.key_matrix()
    bank = make_bank(state.slots, slots, dtype)
    router = HybridRouter(
        reader=reader,
        keys=keys,
        key_slots=slots,
        floors=_in_order([s.key_floors for s in state.slots if isinstance(s, EditSlot)], slots),
        subject=state.subject_space,
        relation=state.key_space,
        gated=_in_order([s.gated for s in state.slots if isinstance(s, EditSlot)], slots),
    )
    return SideMemory(bank.to(device), router.to(device))


def _in_order(of_slots: Sequence[Tensor], key_slots: Tensor) -> Tensor:
    """`[keys]` what each slot has of each of its places, in the order of the keys."""
    own = torch.cat(list(of_slots))
    return own.new_empty(own.shape).index_copy(0, key_slots.argsort(stable=True), own)
