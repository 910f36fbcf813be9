"""The engine that runs the model in vLLM (`wise serve --engine vllm`). It needs the extra `vllm`.

An event loop in a thread of its own calls vLLM's `AsyncLLM`, whose processes run the model. This process decides which
edits a prompt may use (`wise.vllm.requests`); the workers add the edits (`wise.vllm.sequences`), and read versions from
the store themselves.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing, suppress
from dataclasses import fields
from typing import Any, cast
from uuid import uuid4

from wise.demo import model_path
from wise.edits import Edit
from wise.errors import ConfigError, WiseError
from wise.memory.modules import release_weights
from wise.memory.side_memory import NO_SLOT
from wise.model import WiseModel
from wise.router.course import Step
from wise.router.hybrid import NOTHING, HybridRouter
from wise.serving.engines import (
    BusyError,
    Delta,
    EngineError,
    FinishReason,
    GenerationRequest,
    Job,
    Logprobs,
    MemoryHandle,
    RoutedToken,
)
from wise.serving.engines.sequence import Detokenizer
from wise.serving.metrics import Metrics
from wise.serving.settings import Settings
from wise.vllm.answers import FollowedAnswer
from wise.vllm.requests import NOTHING_CARRIED, CarriedEdits, attach, carried_edits, engine_options
from wise.vllm.versions import DroppedError, WorkerVersions

logger = logging.getLogger(__name__)

START_TIMEOUT = 900.0
"""Seconds until vLLM must have started: it may load a large model and compile it."""
LOAD_TIMEOUT = 300.0
"""Seconds that the workers may take to load a version."""
ASK_TIMEOUT = 60.0
"""Seconds for the check of one edit, and seconds that a version waits for the checks before it goes live."""
SPARE_TOKENS = 4
"""Tokens beyond the target that are generated when an edit is checked."""
ENVIRONMENT = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VLLM_NO_USAGE_STATS": "1", "VLLM_CONFIGURE_LOGGING": "0"}
"""Defaults of environment variables. This process has threads, which a fork does not copy; and its log is JSON on
stderr, while vLLM's own log goes to stdout."""
CPU_MEMORY = 0.5
"""Share of the machine's memory that vLLM may take on a CPU. Its default, 0.92, leaves too little for the editor."""


class VllmEngine:
    """Implements `Engine`. Of `model` it uses the tokenizer and the router; its weights are freed."""

    def __init__(self, model: WiseModel, settings: Settings, metrics: Metrics) -> None:
        """Raises ConfigError if vLLM is not installed, or cannot serve such a memory."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from vllm.platforms import current_platform
        except ImportError as error:
            need = f"{error.name}, which is not installed: pip install 'wise-runtime[vllm]'"
            raise ConfigError(f"engine='vllm' needs {need}") from error
        self._encoder, self._tokenizer = model.encoder, model.tokenizer
        self._settings, self._metrics = settings, metrics
        arguments: dict[str, Any] = {
            "model": settings.model or str(model_path()),
            "dtype": str(model.model.dtype).removeprefix("torch."),
            "max_model_len": model.encoder.context,
            "max_num_seqs": settings.max_batch_size,
            "max_num_batched_tokens": settings.max_batch_size + settings.prefill_tokens,
            "generation_config": "vllm",
            "seed": 0,
            **({"gpu_memory_utilization": CPU_MEMORY} if current_platform.is_cpu() else {}),
        } | settings.vllm
        self._options = engine_options(
            model.wise_config,
            model.target_module.path,
            chat_template=model.tokenizer.chat_template,
            user_options=arguments,
        )
        release_weights(model.model)
        self._llm: Any = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="wise-vllm", daemon=True)
        self._started: Future[None] = Future()
        self._versions = WorkerVersions()
        self._checked_edits: dict[str, Edit] = {}
        """The edits that were asked in vLLM, by id."""
        half = max(1, settings.max_batch_size // 2)
        self._places_at_start, self._places = asyncio.Semaphore(half), asyncio.Semaphore(half)
        """Limits of the edits that are asked at once: at the start, and later. Users share the engine with them."""
        self._answers: set[Future[None]] = set()
        """The unfinished ones."""
        size = arguments["max_num_seqs"] * arguments.get("data_parallel_size", 1)  # of these run at once; others wait
        metrics.running.set_function(lambda: min(self.busy, size))
        metrics.queue.set_function(lambda: max(0, self.busy - size))
        for unknown in (metrics.step, metrics.cached, metrics.cache_limit):
            metrics.registry.unregister(unknown)
        self.wrong_answers: Mapping[str, str] = {}

    def start(self) -> None:
        """Raises EngineError, with the reason, if vLLM does not start; ConfigError if it cannot serve such a memory."""
        self._thread.start()
        try:
            self._started.result(START_TIMEOUT)
        except WiseError:
            raise
        except (Exception, SystemExit) as error:
            why = f"({type(error).__name__}: {error!s:.1000})" if str(error) else f"within {START_TIMEOUT:.0f} s"
            advice = "see what it logged before this, and give it other options with the setting `vllm`"
            raise EngineError(f"vLLM did not start {why}; {advice}") from error

    def close(self) -> None:
        if self._thread.is_alive():
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(self._settings.shutdown_timeout)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self._llm is not None and not self._llm.errored

    @property
    def busy(self) -> int:
        return len(self._answers)

    def submit(self, requests: Sequence[GenerationRequest], *, seconds: float) -> Job:
        job = Job(loop=asyncio.get_running_loop(), deadline=time.monotonic() + seconds)
        if not self.alive:
            raise EngineError("the engine does not run; see the log, then start the service again")
        if self.busy + len(requests) > self._settings.max_queue + self._settings.max_batch_size:
            raise BusyError(f"{self.busy} answers are waited for already; try again in 1 s", 1)
        for index, request in enumerate(requests):
            answer = asyncio.run_coroutine_threadsafe(self._answer(job, index, request), self._loop)
            self._answers.add(answer)
            answer.add_done_callback(self._answers.discard)
            job.futures.append(answer)
        return job

    def prepare(self, handles: Sequence[MemoryHandle]) -> None:
        """Loads a version into the workers, and asks its edits that were not asked yet.

        The first version was live before, so the service does not wait for the checks of its edits.
        """
        first = self._versions.empty
        loading = self._versions.load(self._llm, handles[0].version)
        try:
            asyncio.run_coroutine_threadsafe(loading, self._loop).result(LOAD_TIMEOUT)
        except WiseError:
            raise
        except Exception as error:
            raise EngineError(f"vLLM could not do it: {error!r:.500}") from error
        places = self._places_at_start if first else self._places
        check = asyncio.run_coroutine_threadsafe(self._ask_new(handles, places), self._loop)
        if not first:
            with suppress(TimeoutError):
                check.result(ASK_TIMEOUT)

    # -- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._start())
        except BaseException as error:
            if self._llm is not None:
                self._llm.shutdown()
            self._loop.close()
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        try:
            self._loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._llm.shutdown()
            self._loop.close()

    async def _start(self) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**self._options))
        store = self._settings.store
        place = store if "://" in store else os.path.abspath(store)
        for rank, worker in enumerate(await attach(self._llm, place)):
            logger.info("vLLM's worker %d serves edits", rank, extra={"fields": worker})

    # -- an answer --------------------------------------------------------------------------------

    async def _answer(self, job: Job, index: int, request: GenerationRequest) -> None:
        """Puts the deltas of one answer into the job's queue, or an exception."""
        from vllm.exceptions import VLLMClientError

        text = Detokenizer(self._tokenizer, request.prompt, request.stops)
        version = None if request.handle.memory is None else request.handle.version
        try:
            with self._versions.holding(version):
                async with asyncio.timeout(max(0.0, job.deadline - time.monotonic())):
                    async with aclosing(self._deltas(index, request, text)) as deltas:
                        async for delta in deltas:
                            _deliver(job, delta)
        except TimeoutError:
            _deliver(job, Delta(index=index, text=text.end(), tokens=(), logprobs=(), routed=(), finish="deadline"))
        except asyncio.CancelledError:  # if the client has left, the error is not read
            self._fail(job, EngineError("the service ends"))
        except DroppedError as error:
            self._fail(job, EngineError(str(error)))
        except (VLLMClientError, ValueError) as error:  # such as a prompt that goes beyond an option of vLLM's
            self._fail(job, ConfigError(f"vLLM does not take this request: {error!s:.500}"))
        except Exception as error:
            logger.exception("vLLM failed on a request")
            self._fail(job, EngineError(f"the model failed on this request: {type(error).__name__}; see the log"))

    def _fail(self, job: Job, error: Exception) -> None:
        if not job.failed:
            job.failed = True
            _deliver(job, error)
            job.cancel()

    async def _deltas(self, index: int, request: GenerationRequest, text: Detokenizer) -> AsyncGenerator[Delta, None]:
        """text: of the answer; its pending text is in the last delta."""
        carried = await asyncio.to_thread(self._carried_edits, request)
        length = len(request.prompt)
        followed = None if carried.course is None else FollowedAnswer(request.prompt, carried.course)
        routed = _routed_tokens(request, carried.steps, 0, length)
        before: tuple[Logprobs, ...] = ()
        start = last_token_at = time.monotonic()
        outputs = self._llm.generate(carried.prompt(request.prompt), self._params(request, carried), uuid4().hex)
        self._metrics.prompt_tokens.inc(length)
        async with aclosing(outputs):  # if it is left early, vLLM ends the request
            async for output in outputs:
                completion = output.outputs[0]
                new = tuple(completion.token_ids)[: request.max_new_tokens]  # vLLM generates one at least
                if request.prompt_logprobs is not None and output.prompt_logprobs:
                    before = _logprobs(request.prompt[1:], output.prompt_logprobs[1:], request.prompt_logprobs)
                if new:
                    now = time.monotonic()
                    metric = self._metrics.first if last_token_at == start else self._metrics.between
                    metric.observe(now - last_token_at)
                    last_token_at = now
                new_text = ""
                for place, token in enumerate(new):
                    new_text += "" if token in self._encoder.stops else text.add(token)
                    if text.stopped:  # and vLLM may have given more at once
                        new = new[: place + 1]
                        break
                if followed is not None:
                    first, steps = followed.decided_length, followed.add(new)
                    routed += _routed_tokens(request, steps, first, followed.decided_length)
                finish = "stop" if text.stopped else cast(FinishReason | None, completion.finish_reason)
                if finish is not None and finish not in ("stop", "length"):
                    raise EngineError(f"vLLM ended the request: {finish}")
                self._metrics.tokens.inc(len(new))
                self._metrics.routed.inc(sum(each.open for each in routed))
                top = request.top_logprobs
                yield Delta(
                    index=index,
                    text=new_text + (text.end() if finish else ""),
                    tokens=new,
                    logprobs=() if top is None else _logprobs(new, completion.logprobs[: len(new)], top),
                    routed=tuple(routed),
                    finish=finish,
                    prompt_logprobs=before,
                )
                routed, before = [], ()
                if finish is not None:
                    return

    def _carried_edits(self, request: GenerationRequest) -> CarriedEdits:
        handle = request.handle
        if handle.memory is None or not isinstance(handle.memory.router, HybridRouter):
            return NOTHING_CARRIED
        return carried_edits(
            request.prompt,
            handle.memory.router,
            handle.state,
            version=handle.version,
            namespace=handle.namespace or "",
            stops=self._encoder.stops,
        )

    def _params(self, request: GenerationRequest, carried: CarriedEdits) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        schema = request.json_schema
        names = SamplingParams.__struct_fields__
        fields_of_vllm = {f.name: getattr(request, f.name) for f in fields(request) if f.name in names}
        fields_of_vllm["logit_bias"] = request.logit_bias or None  # vLLM treats an empty one as set
        return SamplingParams(
            **fields_of_vllm,
            max_tokens=max(1, request.max_new_tokens),
            structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
            stop_token_ids=sorted(self._encoder.stops),
            logprobs=request.top_logprobs,
            extra_args=carried.extra_args,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    # -- before a version goes live ---------------------------------------------------------------

    async def _ask_new(self, handles: Sequence[MemoryHandle], places: asyncio.Semaphore) -> None:
        """Asks each new edit once; stores and logs the wrong answers."""
        version = handles[0].version
        live = {edit.id: (edit, handle) for handle in handles for edit in handle.state.edits}
        new = {i: pair for i, pair in live.items() if self._checked_edits.get(i) is not pair[0]}
        self._checked_edits = {edit_id: edit for edit_id, (edit, _) in live.items()}
        self.wrong_answers = {i: answer for i, answer in self.wrong_answers.items() if i in live and i not in new}
        with self._versions.holding(version):
            checks = (self._wrong_answer(edit, handle, places) for edit, handle in new.values())
            answers = await asyncio.gather(*checks, return_exceptions=True)
        wrong_answers = {}
        for (edit_id, (edit, _)), answer in zip(new.items(), answers, strict=True):
            if answer is None or self._checked_edits.get(edit_id) is not edit:  # a later version does not have it
                continue
            if isinstance(answer, BaseException):
                del self._checked_edits[edit_id]  # the next version asks it again
                answer = f"(it could not be asked: {type(answer).__name__} {answer!s:.200})"
            wrong_answers[edit_id] = answer
        if wrong_answers:
            self.wrong_answers = {**self.wrong_answers, **wrong_answers}
            fields = {"version": version, "edits": [*wrong_answers][:100]}
            counts = len(wrong_answers), len(new)
            logger.warning("%d of %d new edits do not hold in vLLM", *counts, extra={"fields": fields})

    async def _wrong_answer(self, edit: Edit, handle: MemoryHandle, places: asyncio.Semaphore) -> str | None:
        """The answer to an edit's question if it is not the target, else None."""
        encoder = self._encoder
        question = encoder.question(encoder.own_prompt(edit))
        target = encoder.chat_target(edit.target) if question.chat else encoder.target(edit.prompt, edit.target)
        request = GenerationRequest(prompt=question.ids, handle=handle, max_new_tokens=len(target) + SPARE_TOKENS)
        answer: list[int] = []
        async with places, asyncio.timeout(ASK_TIMEOUT):
            async for delta in self._deltas(0, request, Detokenizer(self._tokenizer, question.ids, ())):
                answer += delta.tokens
        if encoder.answer(answer, chat=question.chat) == encoder.answer(target, chat=question.chat):
            return None
        return str(self._tokenizer.decode(answer, skip_special_tokens=True)).strip()


def _deliver(job: Job, item: Delta | Exception) -> None:
    with suppress(RuntimeError):  # the loop is closed: its callers have ended
        job.loop.call_soon_threadsafe(job.deltas.put_nowait, item)


def _routed_tokens(request: GenerationRequest, steps: Sequence[Step], first: int, stop: int) -> list[RoutedToken]:
    """The routes to report of the tokens from `first` to `stop`."""
    decided = {place: (decision, value) for place, decision, value in steps}
    places = range(first, stop) if request.trace and request.handle.memory is not None else sorted(decided)
    decisions = [(place, *decided.get(place, (NOTHING, NO_SLOT))) for place in places]
    return [
        RoutedToken(
            position=place,
            edit=None if value == NO_SLOT else request.handle.edit_id(decision.slot, -1),
            slot=decision.slot,
            score=decision.score,
            threshold=decision.threshold,
            open=value != NO_SLOT,
        )
        for place, decision, value in decisions
        if value != NO_SLOT or request.trace
    ]


def _logprobs(tokens: Sequence[int], numbers: Sequence[Any], top: int) -> tuple[Logprobs, ...]:
    """numbers: for each token, vLLM's log-probabilities of the token and of the likeliest tokens, by token."""
    result = []
    for token, candidates in zip(tokens, numbers, strict=True):
        ranked = sorted(((i, number.logprob) for i, number in candidates.items()), key=lambda pair: (-pair[1], pair[0]))
        likeliest = tuple(pair for pair in ranked if math.isfinite(pair[1]))[:top]
        result.append(Logprobs(token=token, logprob=candidates[token].logprob, top=likeliest))
    return tuple(result)
