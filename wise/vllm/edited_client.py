"""vLLM's own server with edits: generation passes through here, and the newest version of a store is served.

Of the server's `EngineClient` only `generate` is replaced, by one that decides which edits a prompt carries and notes
which edits were active. So all routes of the server that generate have the edits.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

from wise.edits import DEFAULT_NAMESPACE
from wise.errors import ConfigError
from wise.memory.fingerprint import Fingerprint
from wise.memory.side_memory import NO_SLOT
from wise.memory.state import MemoryState
from wise.memory.store.store import Store, open_reader
from wise.router.course import Course, Plan, Step
from wise.vllm.addition import options_of
from wise.vllm.answers import FollowedAnswer
from wise.vllm.requests import EXTENSION, NOTHING_CARRIED, CarriedEdits, attach, carried_edits
from wise.vllm.sequences import ServedMemory
from wise.vllm.versions import DroppedError, WorkerVersions
from wise.vllm.worker import Memories

logger = logging.getLogger(__name__)

INTERVAL = 0.2
"""Seconds between two looks at the store."""
RETRY = 1.0
"""Seconds until the next look after one that failed."""
BEAM = "-beam-"
"""In the name of a request that vLLM makes for one token of one beam: its answer is not known yet."""


@dataclass(eq=False)
class RequestMemory:
    """The memory of one HTTP request, and the edits that were active in its answers."""

    namespace: str = DEFAULT_NAMESPACE
    exit_stack: ExitStack | None = None
    """Closed when the HTTP request ends, and then None: a task of the request may still generate."""
    version: int | None = None
    """None until its first answer begins: before that, the server has not checked its key."""
    memory: ServedMemory | None = None
    """None if no edit is live."""
    answers: list[dict[int, list[int]]] = field(default_factory=list)
    """For each answer, by slot, the positions of its tokens in prompt and answer."""

    def note(self, answer: int, steps: Sequence[Step]) -> None:
        for position, decision, value in steps:
            if value != NO_SLOT:
                self.answers[answer].setdefault(decision.slot, []).append(position)

    def to_dict(self) -> dict[str, Any]:
        """In the form of `wise serve`."""
        state = MemoryState() if self.memory is None else self.memory.state

        def edit_entry(slot: int, tokens: list[int]) -> dict[str, Any]:
            edit = state.by_id[state.slots[slot].edit_ids[0]]
            return {"id": edit.id, "prompt": edit.prompt, "target": edit.target, "tokens": tokens}

        edits = [[edit_entry(slot, tokens) for slot, tokens in answer.items()] for answer in self.answers]
        return {"version": self.version, "namespace": self.namespace, "edits": edits}


request_memory: ContextVar[RequestMemory | None] = ContextVar("wise_request_memory", default=None)
"""Of the HTTP request that is being answered."""


class EditedClient:
    """An `EngineClient` of vLLM that answers with the newest version of a store."""

    def __init__(self, client: Any, place: str, store: Store, memories: Memories, ends: Collection[int]) -> None:
        """client: the server's. place: of the store, for the workers. memories: loads the store's versions. ends: ids
        at which the base ends an answer."""
        self._client, self._place, self._store = client, place, store
        self._memories, self._ends = memories, frozenset(ends)
        self._versions = WorkerVersions()
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
        base = store.read().base
        options = checked_options(client.vllm_config, base)
        if base is not None and base.name not in ("", config.model, os.path.realpath(config.model)):
            logger.warning("the store's edits were made on %r and vLLM serves %r", base.name, config.model)
        ids = config.try_get_generation_config().get("eos_token_id", client.get_tokenizer().eos_token_id)
        memories = Memories(options, config.tokenizer, place, partial(check_base, client.vllm_config))
        return cls(client, place, store, memories, ids if isinstance(ids, list) else [ids])

    async def start(self) -> None:
        """Makes the engine answer with edits. Raises as `attach` does, and errors of loading a version."""
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
        trouble = ""
        while True:
            await asyncio.sleep(RETRY if trouble else INTERVAL)
            try:
                version = await asyncio.to_thread(self._newest)
                if version != self.served[0]:
                    await self._take_over(version)
                trouble = ""
            except Exception as error:
                if trouble != repr(error):  # each error is logged once, not with every look
                    trouble = repr(error)
                    logger.exception("the store's newest version could not be taken over; %d is served", self.served[0])

    async def _take_over(self, version: int) -> None:
        memories = await asyncio.to_thread(self._memories.read, version, None)
        await self._versions.load(self._client, version)
        self.served = version, memories
        logger.info("version %d is served: %d namespaces have edits", version, len(memories))

    async def generate(self, prompt: Any, sampling_params: Any, request_id: str, **options: Any) -> AsyncIterator[Any]:
        """The client's own `generate`, with the edits. Raises as `_holding` does."""
        request = request_memory.get() or RequestMemory()
        with self._holding(request):
            first, reported = len(request.answers), BEAM not in request_id
            request.answers += [{} for _ in range(sampling_params.n)] if reported else []
            carried = await asyncio.to_thread(self._carried_edits, request, prompt, sampling_params)
            params, client_salt = sampling_params.clone(), prompt.get("cache_salt")
            extra_args = {name: value for name, value in (params.extra_args or {}).items() if name != "wise"}
            params.extra_args = {**extra_args, **(carried.extra_args or {})} or None
            salt = f"{carried.cache_salt or ''}/{client_salt}" if client_salt else carried.cache_salt
            salted = prompt if salt is None else {**prompt, "cache_salt": salt}
            followed: dict[int, FollowedAnswer] = {}
            async with aclosing(self._generate(salted, params, request_id, **options)) as outputs:
                async for output in outputs:
                    for completion in output.outputs if reported and carried.extra_args is not None else ():
                        if completion.index not in followed:
                            plan = Plan.from_json(carried.extra_args["wise"]["plan"])  # type: ignore[index]
                            course = Course(request.memory.router, plan)  # type: ignore[union-attr]
                            followed[completion.index] = FollowedAnswer(prompt["prompt_token_ids"], course)
                            request.note(first + completion.index, carried.steps)
                        answer = followed[completion.index]
                        is_delta = params.output_kind.name == "DELTA"
                        new = completion.token_ids[0 if is_delta else answer.generated :]
                        request.note(first + completion.index, answer.add(new))
                    yield output

    @contextmanager
    def _holding(self, request: RequestMemory) -> Iterator[None]:
        """Keeps the memory of a request loaded within the block: the newest, if it is the request's first answer.

        Raises errors of vLLM: that no edit is live in the namespace, or that the version was dropped meanwhile.
        """
        from vllm.exceptions import RetryableRequestError, VLLMNotFoundError

        if request.version is None:
            version, memories = self.served
            memory = memories.get((version, request.namespace))
            if memory is None and request.namespace != DEFAULT_NAMESPACE:
                names = ", ".join(sorted(name for _, name in memories)) or "none"
                problem = f"no edit is live in the namespace {request.namespace!r:.80}"
                raise VLLMNotFoundError(f"{problem}; there are: {names}")
            request.version, request.memory = version, memory
            if request.exit_stack is not None:
                request.exit_stack.enter_context(self._versions.holding(version))
        try:
            with self._versions.holding(request.version):
                yield
        except DroppedError as error:
            raise RetryableRequestError(str(error)) from error

    def _carried_edits(self, request: RequestMemory, prompt: Any, params: Any) -> CarriedEdits:
        if request.memory is None:
            return NOTHING_CARRIED
        return carried_edits(
            prompt["prompt_token_ids"],
            request.memory.router,
            request.memory.state,
            version=request.version,  # type: ignore[arg-type]
            namespace=request.namespace,
            stops=(frozenset() if params.ignore_eos else self._ends).union(params.stop_token_ids or ()),
        )


def checked_options(config: Any, base: Fingerprint | None) -> dict[str, Any]:
    """The options with which an engine was started for edits. config: vLLM's VllmConfig; base: of the store's edits.

    Raises ConfigError if it was started without, with the options to give, or as `check_base` does.
    """
    options = options_of(config)
    if options is None or config.parallel_config.worker_extension_cls != EXTENSION:
        layer = "PATH, the `target_module` that `wise info` shows" if base is None else base.path
        raise ConfigError(
            f"vLLM was started without edits: give it --worker-extension-cls {EXTENSION} "
            f"--additional-config.wise.layer {layer}"
        )
    check_base(config, base)
    return dict(options)


def check_base(config: Any, base: Fingerprint | None) -> None:
    """Raises ConfigError if vLLM serves another kind of base than that of the edits, has another edited layer, or runs
    in another precision. Weights are not compared."""
    if base is None:
        return
    model = config.model_config
    served = model.hf_config.model_type, model.hf_text_config.vocab_size, config.additional_config["wise"]["layer"]
    if (base.model_type, base.vocabulary, base.path) != served:
        raise ConfigError(
            f"the store has edits of a {base.model_type} of {base.vocabulary} tokens, at {base.path}, and vLLM serves "
            f"a {served[0]} of {served[1]} tokens, edited at {served[2]}; serve that base, or name its store"
        )
    dtype = str(model.dtype).removeprefix("torch.")
    if base.precision != dtype:
        raise ConfigError(
            f"the store's edits were made in {base.precision} and vLLM serves {dtype}, in which they may be said "
            f"otherwise: give it --dtype {base.dtype}"
        )
