"""From the truth to what serves it: the side memory of a snapshot, on its device and in its precision."""

from __future__ import annotations

import torch

from wise.config import WiseConfig
from wise.errors import ConfigError
from wise.memory.key_space import KeySpace
from wise.memory.side_memory import SideMemory
from wise.memory.slot import make_bank
from wise.memory.state import MemoryState
from wise.router.activation import ActivationRouter, RetrievalRouter
from wise.router.hybrid import HybridRouter, RouterInputs


def assemble(
    state: MemoryState, config: WiseConfig, *, inputs: RouterInputs | None, device: torch.device, dtype: torch.dtype
) -> SideMemory | None:
    """The side memory that serves `state`; None where there is nothing to serve.

    inputs: what the router of `hybrid` reads.
    dtype: precision of what slots add, that of the model they stand in; all that routes is float32.
    """
    if not state.edits:
        return None
    bank = make_bank(state.slots, dtype)
    if config.mode == "hybrid":
        if inputs is None:
            raise ConfigError("mode='hybrid' needs the ids that the model reads, and nothing notes them")
        return SideMemory(bank.to(device), HybridRouter(state, inputs))
    thresholds, space = torch.tensor([slot.threshold for slot in state.slots]), state.key_space
    if config.mode == "merge":
        return SideMemory(bank.to(device), ActivationRouter(thresholds).to(device))
    if not isinstance(space, KeySpace):
        raise ConfigError("mode='retrieve' needs a key space of activations and this memory has none")
    keys, slots = state.key_matrix()
    router = RetrievalRouter(
        thresholds=thresholds, keys=keys, key_slots=slots, space=space, key_threshold=config.key_threshold
    )
    return SideMemory(bank.to(device), router.to(device))
