"""An extension of vLLM's worker class, whose methods a front end calls on all ranks.

vLLM runs such a call between two steps. A thread loads a version, so that no step waits for it, and a front end gives
it to requests only when all ranks have it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from torch import set_num_threads  # which vLLM replaces later, on a CPU
from transformers import AutoTokenizer

from wise.config import WiseConfig
from wise.errors import ConfigError
from wise.memory.artifact import load_memory
from wise.memory.fingerprint import Fingerprint
from wise.memory.state import MemoryState
from wise.memory.store.store import open_reader
from wise.namespaces import split
from wise.router.chat_template import ChatTemplate
from wise.router.encoder import load_encoder
from wise.router.hybrid import HybridRouter, RouterInputs
from wise.vllm.addition import addition_of
from wise.vllm.front_end_watch import Process, end_with
from wise.vllm.requests import check_mode
from wise.vllm.runners import observe
from wise.vllm.sequences import FollowedSequences, ServedMemory


class Memories:
    """Loads versions, from a store or from a folder that `save_pretrained` wrote. Used by one thread."""

    def __init__(
        self,
        options: dict[str, Any],
        tokenizer_path: str,
        store: str | None,
        check: Callable[[Fingerprint | None], None] | None = None,
    ) -> None:
        """check: raises an error if the base of a store's edits is not the served one."""
        self._options, self._tokenizer_path = options, tokenizer_path
        self._inputs: RouterInputs | None = None
        self._store = None if store is None else open_reader(store)
        self._check = check
        self._memories: dict[str, ServedMemory] = {}
        """Of the last version, by namespace: unchanged ones are used again."""

    def read(self, version: int, folder: str | None) -> dict[tuple[int, str], ServedMemory]:
        """By version and namespace. folder: of a saved memory; None reads the store's version of that number."""
        if folder is not None:
            config, state, _ = load_memory(folder)
        elif self._store is None:
            raise ConfigError(f"version {version}: no store was named, and no folder is given")
        else:
            snapshot = self._store.read(version)
            if self._check is not None:
                self._check(snapshot.base)  # at the start the store may have been empty, without a base
            config, state = snapshot.config or WiseConfig(), snapshot.state
        check_mode(config)
        before, self._memories = self._memories, {}
        for name, namespace_state in split(state).items():
            memory = before.get(name)
            if memory is None or not memory.state.same(namespace_state):
                memory = self._served(namespace_state, config)
            self._memories[name] = memory
        return {(version, name): memory for name, memory in self._memories.items()}

    def _served(self, state: MemoryState, config: WiseConfig) -> ServedMemory:
        if self._inputs is None:
            tokenizer = AutoTokenizer.from_pretrained(self._tokenizer_path)
            tokenizer.chat_template = self._options.get("chat_template", tokenizer.chat_template)
            options = self._options
            self._inputs = RouterInputs(
                sequences=None,
                tokenizer=tokenizer,
                template=ChatTemplate.learn(tokenizer),
                reader=load_encoder(
                    options.get("encoder", config.encoder), relations=options.get("relations", config.relations)
                ),
            )
        reader = self._inputs.reader
        if state.key_space != reader.key_space:
            raise ConfigError(
                f"the keys of the edits are of the relation reader {getattr(state.key_space, 'reader', 'none')!r} and "
                f"vLLM has {reader.name!r}; give it --additional-config.wise.relations and .encoder as they were then"
            )
        router = HybridRouter(state, self._inputs)
        router.is_quiet(np.zeros(0, dtype=np.int64))  # computes what it caches now, and not within a step
        return ServedMemory(state=state, router=router)


class WiseWorker:
    """The extension (`worker_extension_cls`). `self` is vLLM's worker."""

    model_runner: Any
    vllm_config: Any

    def wise_attach(self, store: str | None = None, front_end: Process | None = None) -> dict[str, Any]:
        """Begins to watch this worker's steps, and returns how. Called once, before any request.

        store: place from which versions are read. front_end: the process with which this one ends.

        Raises ConfigError if the edited layer does not stand in this model, or another front end has called it.
        """
        if hasattr(self, "_wise"):
            raise ConfigError("another front end gives this engine its edits: start vLLM with --api-server-count 1")
        if front_end is not None:
            end_with(front_end)
        config = self.vllm_config
        options = dict(config.additional_config["wise"])
        addition = addition_of(options["layer"])
        if addition is None:
            raise ConfigError(
                f"no layer {options['layer']!r} that is a RowParallelLinear was built: vLLM names it otherwise, or the "
                "plug-in 'wise' was not loaded (where VLLM_PLUGINS is set, it must name it)"
            )
        self._wise = FollowedSequences(addition, record=bool(options.get("record")))
        self._wise_memories = Memories(options, config.model_config.tokenizer, store if addition.adds else None)
        # With its own OpenMP threads, the loader would make the threads of the steps sleep between two operations.
        self._wise_loader = ThreadPoolExecutor(1, "wise-load", initializer=set_num_threads, initargs=(1,))
        self._wise_loading: dict[int, Future[dict[tuple[int, str], ServedMemory]]] = {}
        runner = observe(self.model_runner, self._wise)
        return {"runner": runner, "adds": addition.adds, "layer": options["layer"]}

    def wise_load(self, version: int, folder: str | None = None) -> None:
        """Begins to load a version."""
        if self._wise.adds:
            self._wise_loading[version] = self._wise_loader.submit(self._wise_memories.read, version, folder)

    def wise_loaded(self, version: int) -> bool:
        """Whether `wise_take` would not have to wait."""
        return version not in self._wise_loading or self._wise_loading[version].done()

    def wise_take(self, version: int) -> None:
        """Makes a loaded version available to requests. Raises errors of its loading."""
        loading = self._wise_loading.pop(version, None)
        if loading is not None:
            self._wise.memories |= loading.result()

    def wise_drop(self, version: int) -> None:
        """Removes a version: no further request gets it."""
        self._wise.drop(version)

    def wise_recorded(self) -> dict[str, list[tuple[int, str]]]:
        """The positions and edits that were added since the last call, by request. Needs the option `record`."""
        recorded, self._wise.recorded = self._wise.recorded or {}, {}
        return {request: sorted(additions.items()) for request, additions in recorded.items()}
