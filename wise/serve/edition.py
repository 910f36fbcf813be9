"""A version as it is served: the side memory of each namespace, and which edit is behind what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wise.edits import Edit
from wise.errors import ConfigError, did_you_mean
from wise.memory.side_memory import SideMemory
from wise.memory.state import MemoryState
from wise.memory.store.versions import Snapshot
from wise.model import WiseModel
from wise.namespaces import within
from wise.router.assemble import assemble

DEFAULT = "default"


@dataclass(frozen=True, kw_only=True, eq=False)
class Voice:
    """The memory that a row is under, from its first token to its last."""

    version: int
    namespace: str | None
    """None is the base alone."""
    state: MemoryState = field(default_factory=MemoryState)
    memory: SideMemory | None = None

    def edit_of(self, slot: int, key: int) -> str | None:
        """The id of the edit behind a token; None where its slot does not tell its edits apart (`merge`)."""
        held: Sequence[str] = self.state.slots[slot].edit_ids
        if len(held) == 1:
            return held[0]
        return self.state.key_owners[key] if key >= 0 else None

    def shared(self, slot: int) -> bool:
        """Whether a slot holds several edits, so that it takes the key to tell which one speaks."""
        return len(self.state.slots[slot].edit_ids) > 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Edition:
    """All voices of one version. Immutable: a request that began with it keeps it."""

    version: int
    edits: Mapping[str, Edit]
    voices: Mapping[str, Voice]

    def voice(self, namespace: str) -> Voice:
        """Raises ConfigError for a namespace in which nothing is live, but for the default one."""
        if namespace not in self.voices:
            raise ConfigError(
                f"no edit is live in the namespace {namespace!r}; {did_you_mean(namespace, self.voices)}"
            )
        return self.voices[namespace]

    @property
    def base(self) -> Voice:
        """Nothing but the base."""
        return Voice(version=self.version, namespace=None)


def edition_of(model: WiseModel, snapshot: Snapshot) -> Edition:
    """What serves a snapshot on `model`, whose own memory is left alone."""
    voices = {}
    for namespace in sorted({DEFAULT, *(edit.namespace for edit in snapshot.state.edits)}):
        state = within(snapshot.state, namespace)
        memory = assemble(
            state, model.wise_config, inputs=model.inputs, device=model.layer.device(), dtype=model.model.dtype
        )
        voices[namespace] = Voice(version=snapshot.version, namespace=namespace, state=state, memory=memory)
    return Edition(
        version=snapshot.version, edits={edit.id: edit for edit in snapshot.state.edits}, voices=voices
    )
