"""What a request to vLLM carries: its edits and the key of its prefix cache; and the options of an engine.

This is the front end's side. It decides once, before a prompt is run, which edits the prompt may use. A request that
names no edited subject carries nothing. The front end also knows an answer's provenance: which edit is added at which
token depends on the ids alone, and a worker that did not add it ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np

from wise.config import WiseConfig
from wise.errors import ConfigError
from wise.memory.state import MemoryState
from wise.router.course import Course, Step
from wise.router.hybrid import HybridRouter
from wise.vllm.front_end_watch import this_process

EXTENSION = "wise.vllm.worker.WiseWorker"
LOADING = 0.02
"""Seconds between two checks whether a version is loaded."""
SMALLEST_CHANGE = 0.1
"""Nats: a probe must change the log-probability of a likely token by more."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CarriedEdits:
    """What one prompt carries to the workers."""

    course: Course | None
    """Has read the prompt; None under the base alone."""
    steps: tuple[Step, ...]
    """The decisions at the prompt's tokens."""
    extra_args: dict[str, Any] | None
    """Of SamplingParams; None if no edit can be added."""
    cache_salt: str | None
    """Of the prompt: requests share cached blocks only if their salts are equal. None if no edit is added."""

    def prompt(self, ids: Sequence[int]) -> dict[str, Any]:
        """The prompt in vLLM's form."""
        inputs: dict[str, Any] = {"prompt_token_ids": [*ids]}
        return inputs if self.cache_salt is None else inputs | {"cache_salt": self.cache_salt}


NOTHING_CARRIED = CarriedEdits(course=None, steps=(), extra_args=None, cache_salt=None)


def carried_edits(
    ids: Sequence[int],
    router: HybridRouter,
    state: MemoryState,
    *,
    version: int,
    namespace: str,
    stops: Collection[int],
) -> CarriedEdits:
    """What a prompt carries under the memory of one version and namespace.

    stops: ids at which its generation ends.

    If the answer to an edited question can begin only in the prompt, as in a chat, the salt is a digest of what these
    answers add: a prompt that names no edited subject has no salt and shares its cache across versions. Else the cache
    may contain additions in generated text, so the salt is the version, and whether the prompt is a chat.
    """
    course = Course(router)
    steps = tuple(course.read(np.asarray(ids, dtype=np.int64), 0))
    plan = course.plan(ids, stops)
    if plan.idle:
        return CarriedEdits(course=course, steps=steps, extra_args=None, cache_salt=None)
    namespace_digest = hashlib.sha256(namespace.encode()).hexdigest()[:32]
    by_version = f"wise:{version}:{plan.chat_start < plan.length:d}:{namespace_digest}"
    salt = by_version if plan.open_ended else f"wise:{plan.digest(state)}"
    carried = {"version": version, "namespace": namespace, "plan": plan.to_json()}
    return CarriedEdits(course=course, steps=steps, extra_args={"wise": carried}, cache_salt=salt)


def check_mode(config: WiseConfig) -> None:
    """Raises ConfigError for a memory that vLLM cannot serve."""
    if config.mode != "hybrid":
        raise ConfigError(f"mode={config.mode!r}: vLLM serves memories of mode='hybrid', which go by token ids")


def engine_options(
    config: WiseConfig,
    layer: str,
    *,
    chat_template: str | None = None,
    record: bool = False,
    user_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments of vLLM's `EngineArgs` with which the plug-in adds the side memory to a layer.

    layer: path of the edited module, `WiseModel.target_module.path`.
    chat_template: if the front end's tokenizer has another one than its folder. record: record the additions, for a
    check. user_options: arguments to which these are added.

    Raises ConfigError as `check_mode` does, and for another extension of the worker.
    """
    check_mode(config)
    further = {"chat_template": chat_template, "encoder": config.encoder, "relations": config.relations}
    wise_options: dict[str, Any] = {"layer": layer, "record": record}
    wise_options |= {name: value for name, value in further.items() if value is not None}
    options = dict(user_options or {})
    extension = options.get("worker_extension_cls")
    if extension not in (None, EXTENSION):
        raise ConfigError(f"worker_extension_cls={extension!r}: the side memory needs that place; leave it out")
    additional = options.get("additional_config") or {}
    return options | {"worker_extension_cls": EXTENSION, "additional_config": {**additional, "wise": wise_options}}


async def attach(engine: Any, store: str | None = None) -> list[dict[str, Any]]:
    """Makes an `AsyncLLM` ready for edits, and tests it; returns what each worker reports.

    store: place from which the workers read versions; no option of the engine, since it may hold a password.

    Raises ConfigError if an edit would change no answer, or what a worker raised.
    """
    reports: list[dict[str, Any]] = await engine.collective_rpc("wise_attach", args=(store, this_process()))
    size = engine.vllm_config.parallel_config.data_parallel_size
    for rank in range(size) if size > 1 else [None]:
        before, after = [await _first_logprobs(engine, probe, rank) for probe in (False, True)]
        check_probe(before, after)
    return reports


async def load_version(engine: Any, version: int) -> None:
    """Returns when all workers have a version of the store. Raises errors of loading it.

    With data parallel engines vLLM returns the results of the first engine's workers, and raises errors of any engine.
    So this waits for the first engine, without a pause of its steps; the others have then loaded it, or nearly.
    """
    await engine.collective_rpc("wise_load", args=(version,))
    while not all(await engine.collective_rpc("wise_loaded", args=(version,))):
        await asyncio.sleep(LOADING)
    await engine.collective_rpc("wise_take", args=(version,))


def check_probe(before: Mapping[int, float], after: Mapping[int, float]) -> None:
    """Compares log-probabilities of tokens after one prompt, without and with a probe at its last token.

    Raises ConfigError if the probe changed nothing.
    """
    shared = before.keys() & after.keys()
    changed = before.keys() != after.keys() or any(abs(before[i] - after[i]) > SMALLEST_CHANGE for i in shared)
    sound = all(math.isfinite(value) for value in before.values())
    if not (before and sound and changed):
        raise ConfigError(
            "the side memory was added at a token and vLLM answered as before: edits would have no effect; set "
            "enforce_eager=True, and report the release of vLLM and its options"
        )


def probe_request(probe: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prompt and arguments of SamplingParams of the self-test. It shares its cache with no other request."""
    prompt = {"prompt_token_ids": [1, 2, 3], "cache_salt": f"wise:probe:{uuid4().hex}"}
    carried = {"wise": {"probe": True}} if probe else None
    return prompt, {"max_tokens": 1, "temperature": 0.0, "logprobs": 5, "detokenize": False, "extra_args": carried}


async def _first_logprobs(engine: Any, probe: bool, rank: int | None) -> dict[int, float]:
    """rank: of one of several data parallel engines."""
    from vllm import SamplingParams

    prompt, arguments = probe_request(probe)
    logprobs: dict[int, float] = {}
    request = f"wise-probe-{uuid4().hex}"
    async for output in engine.generate(prompt, SamplingParams(**arguments), request, data_parallel_rank=rank):
        logprobs = logprobs_of(output)
    return logprobs


def logprobs_of(output: Any) -> dict[int, float]:
    """The log-probabilities of the likeliest first tokens of vLLM's RequestOutput."""
    return {token: entry.logprob for token, entry in output.outputs[0].logprobs[0].items()}
