"""From the truth to what serves it: the side memory of a snapshot, on its device and in its precision."""

from __future__ import annotations

import torch
from torch import Tensor

from wise.config import WiseConfig
from wise.errors import ConfigError
from wise.memory.side_memory import Router, SideMemory, SlotBank
from wise.memory.slot import MaskedDenseSlot
from wise.memory.state import MemoryState
from wise.router.activation import ActivationRouter, RetrievalRouter


def assemble(
    state: MemoryState, config: WiseConfig, *, device: torch.device, dtype: torch.dtype
) -> SideMemory | None:
    """The side memory that serves `state`; None where there is nothing to serve.

    dtype: precision of the slots' weights, that of the model they stand in; all that routes is float32.
    """
    if not state.edits:
        return None
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


def _weight(slot: object) -> Tensor:
    if not isinstance(slot, MaskedDenseSlot):
        raise ConfigError(f"a {type(slot).__name__} cannot be served beside masked-dense slots")
    return slot.weight
