"""vLLM's own server with edits: what it generates goes through here, and a store's versions come as they change.

The server's `EngineClient` stays what it is. Its `generate` is replaced by one that decides what a prompt carries and
notes which edits were active, so all routes of the server that generate have the edits.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Self

from wise.errors import ConfigError
from wise.ingest import open_reader
from wise.memory.fingerprint import Fingerprint
from wise.memory.side_memory import NO_SLOT
from wise.memory.state import MemoryState
from wise.memory.store.store import Store
from wise.router.course import Course, Plan, Step
from wise.vllm.answers import FollowedAnswer
from wise.vllm.requests import EXTENSION, NOTHING_CARRIED, CarriedEdits, attach, carried_edits
from wise.vllm.sequences import ServedMemory
from wise.vllm.versions import HeldVersions
from wise.vllm.worker import Memories

logger = logging.getLogger(__name__)

DEFAULT_NAMESPACE = "default"
INTERVAL = 0.2
"""Seconds between two looks at the store."""


@dataclass(eq=False)
class AskedMemory:
    """The memory that one HTTP request began with, and the edits that were active in its answers."""

    version: int
    namespace: str
    memory: ServedMemory | None
    """None where no edit is live."""
    answers: list[dict[int, list[int]]] = field(default_factory=list)
    """Of each answer by slot the positions of the tokens, in prompt and answer."""

    def note(self, answer: int, steps: Sequence[Step]) -> None:
        for position, decision, value in steps:
            if value != NO_SLOT:
                self.answers[answer].setdefault(decision.slot, []).append(position)

    def to_dict(self) -> dict[str, Any]:
        """In the form of `wise serve`."""
        state = MemoryState() if self.memory is None else self.memory.state
        edits = [[_told(state, slot, tokens) for slot, tokens in own.items()] for own in self.answers]
        return {"version": self.version, "namespace": self.namespace, "edits": edits}


def _told(state: MemoryState, slot: int, tokens: list[int]) -> dict[str, Any]:
    edit = state.by_id[state.slots[slot].edit_ids[0]]
    return {"id": edit.id, "prompt": edit.prompt, "target": edit.target, "tokens": tokens}


asked_memory: ContextVar[AskedMemory | None] = ContextVar("wise_asked_memory", default=None)
"""Of the HTTP request that is being answered."""


class EditedClient:
    """An `EngineClient` of vLLM that answers with the newest version of a store."""

    def __init__(self, client: Any, place: str, store: Store, memories: Memories, ends: Collection[int]) -> None:
        """client: the server's. place: of the store, for the workers. memories: loads its versions. ends: ids at which
        the base ends an answer."""
        self._client, self._place, self._store = client, place, store
        self._memories, self._ends = memories, frozenset(ends)
        self._versions = HeldVersions()
        self.served: tuple[int, dict[tuple[int, str], ServedMemory]] = (0, {})
        """The newest version that the workers have, and its memories by version and namespace."""
        self._generate = client.generate
        self._following: asyncio.Task[None] | None = None

    @classmethod
    def open(cls, client: Any, place: str) -> Self:
        """place: of the store. Raises ConfigError as `checked_options` does, or StoreError."""
        config = client.vllm_config.model_config
        place = place if "://" in place else os.path.abspath(place)
        store = open_reader(place)
        options = checked_options(client.vllm_config, store.read().base)
        ids = config.try_get_generation_config().get("eos_token_id", client.get_tokenizer().eos_token_id)
        memories = Memories(options, config.tokenizer, place)
        return cls(client, place, store, memories, ids if isinstance(ids, list) else [ids])

    async def start(self) -> None:
        """From here on the engine answers with edits. Raises ConfigError as `attach` does, and what a version raised
        while it was loaded."""
        await attach(self._client, self._place)
        await self._take_over(self._newest())
        self._client.generate = self.generate
        self._following = asyncio.create_task(self._follow())

    def close(self) -> None:
        """Ends following the store."""
        if self._following is not None:
            self._following.cancel()
        self._store.close()

    def _newest(self) -> int:
        return self._store.journal.version().number

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                version = await asyncio.to_thread(self._newest)
                if version != self.served[0]:
                    await self._take_over(version)
            except Exception:
                logger.exception("the store's newest version could not be taken over; %d is served", self.served[0])

    async def _take_over(self, version: int) -> None:
        memories = await asyncio.to_thread(self._memories.read, version, None)
        await self._versions.load(self._client, version)
        self.served = version, memories
        logger.info("version %d is served: %d namespaces have edits", version, len(memories))

    @contextmanager
    def asking(self, namespace: str = DEFAULT_NAMESPACE) -> Iterator[AskedMemory]:
        """A request keeps the newest memory of a namespace within the block. Raises LookupError if it has no edits."""
        version, memories = self.served
        if namespace != DEFAULT_NAMESPACE and (version, namespace) not in memories:
            known = ", ".join(sorted(name for _, name in memories))
            raise LookupError(f"no edit is live in the namespace {namespace!r:.80}; there are: {known or 'none'}")
        self._versions.begin([version])
        try:
            yield AskedMemory(version=version, namespace=namespace, memory=memories.get((version, namespace)))
        finally:
            self._versions.end(version)

    async def generate(self, prompt: Any, sampling_params: Any, request_id: str, **options: Any) -> AsyncIterator[Any]:
        """What the client's own generates, with the edits."""
        known = asked_memory.get()
        with self.asking() if known is None else nullcontext(known) as asked:
            first = len(asked.answers)
            asked.answers += [{} for _ in range(sampling_params.n)]
            carried = await asyncio.to_thread(self._carried, asked, prompt, sampling_params)
            params, own = sampling_params.clone(), prompt.get("cache_salt")
            others = {name: given for name, given in (params.extra_args or {}).items() if name != "wise"}
            params.extra_args = {**others, **(carried.extra_args or {})} or None
            salt = f"{carried.cache_salt or ''}/{own}" if own else carried.cache_salt
            salted = prompt if salt is None else {**prompt, "cache_salt": salt}
            followed: dict[int, FollowedAnswer] = {}
            async for output in self._generate(salted, params, request_id, **options):
                for one in output.outputs if carried.extra_args is not None else ():
                    if one.index not in followed:
                        followed[one.index] = _followed(prompt["prompt_token_ids"], carried, asked)
                        asked.note(first + one.index, carried.steps)
                    answer = followed[one.index]
                    new = one.token_ids if params.output_kind.name == "DELTA" else one.token_ids[answer.generated :]
                    asked.note(first + one.index, answer.add(new))
                yield output

    def _carried(self, asked: AskedMemory, prompt: Any, params: Any) -> CarriedEdits:
        if asked.memory is None:
            return NOTHING_CARRIED
        return carried_edits(
            prompt["prompt_token_ids"],
            asked.memory.router,
            asked.memory.state,
            version=asked.version,
            namespace=asked.namespace,
            stops=(frozenset() if params.ignore_eos else self._ends).union(params.stop_token_ids or ()),
        )


def checked_options(config: Any, base: Fingerprint | None) -> dict[str, Any]:
    """The options with which an engine was started for edits. config: vLLM's VllmConfig; base: of the store's edits.

    Raises ConfigError if it was not, with what is to be given, or if it serves another base.
    """
    others = config.additional_config
    own = others.get("wise") if isinstance(others, dict) else None
    if own is None or config.parallel_config.worker_extension_cls != EXTENSION:
        layer = "PATH, the `target_module` that `wise info` shows" if base is None else base.path
        raise ConfigError(
            f"vLLM was started without edits: give it --worker-extension-cls {EXTENSION} "
            f"--additional-config.wise.layer {layer}"
        )
    model = config.model_config
    found = model.hf_config.model_type, model.hf_text_config.vocab_size, own["layer"]
    if base is not None and (base.model_type, base.vocabulary, base.path) != found:
        raise ConfigError(
            f"the store has edits of a {base.model_type} of {base.vocabulary} tokens, at {base.path}, and vLLM serves "
            f"a {found[0]} of {found[1]} tokens, edited at {found[2]}; serve that base, or name its store"
        )
    return dict(own)


def _followed(prompt: Sequence[int], carried: CarriedEdits, asked: AskedMemory) -> FollowedAnswer:
    plan = Plan.from_json(carried.extra_args["wise"]["plan"])  # type: ignore[index]
    return FollowedAnswer(prompt, Course(asked.memory.router, plan))  # type: ignore[union-attr]
