"""The engine on vLLM, with a fake of vLLM's interface: requests, versions, provenance, and errors."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from chats import EDITS, TURNS
from fake_vllm import FakeLLM, installed
from followed import answer_router, answer_state
from tiny import EOS
from waiting import until

import wise
from wise.memory.side_memory import NO_SLOT, SideMemory
from wise.memory.slot import make_bank
from wise.router.chat_template import conversation_ids
from wise.serving.engines import BusyError, Delta, EngineError, GenerationRequest, MemoryHandle
from wise.serving.engines import vllm as module
from wise.serving.engines.vllm import VllmEngine
from wise.serving.metrics import Metrics
from wise.serving.settings import Settings
from wise.vllm.front_end_watch import this_process

STATE = answer_state()
ROUTER = answer_router(STATE)
TOKENIZER = ROUTER.inputs.tokenizer
ASKED, OTHER = (conversation_ids(TOKENIZER, turns) for turns in (TURNS, TURNS[:1]))
SECONDS = 30.0
LONG = 600.0
"""A deadline in seconds that no test reaches."""
PROBES = 2


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    """The fake of vLLM."""
    return installed(monkeypatch)


@pytest.fixture
def engine(unused: VllmEngine, llm: FakeLLM) -> VllmEngine:
    """It serves version 1, whose edits were asked."""
    unused.prepare([handle(1)])
    until(lambda: llm.left == PROBES + len(EDITS))
    return unused


@pytest.fixture
def base() -> torch.nn.Module:
    layer = torch.nn.Linear(2, 2)
    layer.dtype = torch.float32  # as models of transformers have one
    return layer


@pytest.fixture
def unused(unstarted: VllmEngine) -> Iterator[VllmEngine]:
    unstarted.start()
    yield unstarted
    unstarted.close()
    assert not unstarted.alive


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def unstarted(llm: FakeLLM, base: torch.nn.Module, metrics: Metrics) -> VllmEngine:
    return make_engine(base, metrics)


def make_engine(base: torch.nn.Module, metrics: Metrics, **options: Any) -> VllmEngine:
    """An engine with these options of vLLM, not started."""
    encoder = SimpleNamespace(
        stops={EOS},
        context=64,
        own_prompt=lambda edit: edit.prompt,
        question=lambda prompt: SimpleNamespace(
            ids=tuple(conversation_ids(TOKENIZER, [{"role": "user", "content": prompt}])), chat=True
        ),
        chat_target=lambda target: [*TOKENIZER(target)["input_ids"], EOS],
        answer=lambda ids, chat: tuple(ids),
    )
    model: Any = SimpleNamespace(
        encoder=encoder,
        tokenizer=TOKENIZER,
        wise_config=wise.WiseConfig(),
        target_module=SimpleNamespace(path="model.layers.1.mlp.down_proj"),
        model=base,
    )
    settings = Settings(store="nowhere", max_batch_size=2, max_queue=1, vllm={"block_size": 32} | options)
    return VllmEngine(model, settings, metrics)


def handle(version: int) -> MemoryHandle:
    memory = SideMemory(make_bank(STATE.slots, torch.float32), ROUTER)
    return MemoryHandle(version=version, namespace="default", state=STATE, memory=memory)


def renewed(version: int) -> MemoryHandle:
    """Its edits are others of the same ids."""
    return replace(handle(version), state=replace(STATE, edits=tuple(replace(edit) for edit in EDITS)))


def answers(engine: VllmEngine, *requests: GenerationRequest, seconds: float = SECONDS) -> list[Delta]:
    """All deltas of one job. Raises an exception that was delivered in their place."""

    async def collect() -> list[Delta]:
        job, deltas, unfinished = engine.submit(requests, seconds=seconds), [], len(requests)
        while unfinished:
            delta = await asyncio.wait_for(job.deltas.get(), SECONDS)
            if isinstance(delta, Exception):
                raise delta
            deltas.append(delta)
            unfinished -= delta.finish is not None
        return deltas

    return asyncio.run(collect())


def request(ids: list[int], version: int = 1, **more: Any) -> GenerationRequest:
    return GenerationRequest(prompt=tuple(ids), handle=handle(version), **{"max_new_tokens": 8} | more)


def test_an_edit_is_carried_said_and_told(engine: VllmEngine, llm: FakeLLM) -> None:
    deltas = answers(engine, request(ASKED))
    assert [token for delta in deltas for token in delta.tokens] == [70, 71, EOS]
    assert deltas[-1].finish == "stop" and "".join(delta.text for delta in deltas).strip() == "w70 w71"
    routed = [(token.position, token.edit, token.slot) for delta in deltas for token in delta.routed]
    row = np.array([*ASKED, 70, 71])
    chat, begins = ROUTER.begins(row, 0)
    expected = [(p, EDITS[0].id, d.slot) for p, d, v in ROUTER.answer_places(row, 0, begins, chat) if v != NO_SLOT]
    assert routed == expected and len(expected) == 3
    prompt, params = llm.asked[-1]
    assert params.extra_args["wise"]["version"] == 1 and prompt["cache_salt"].startswith("wise:")
    assert (params.temperature, params.max_tokens, params.stop_token_ids) == (0.0, 8, [EOS])


def test_what_names_no_edited_subject_carries_nothing(engine: VllmEngine, llm: FakeLLM) -> None:
    deltas = answers(engine, request(OTHER))
    prompt, params = llm.asked[-1]
    assert params.extra_args is None and prompt == {"prompt_token_ids": OTHER}
    assert [token for delta in deltas for token in delta.tokens] == [8, EOS] and not any(d.routed for d in deltas)
    (traced, *_) = answers(engine, request(OTHER, trace=True))
    assert [token.position for token in traced.routed] == list(range(len(OTHER)))
    base = MemoryHandle(version=1, namespace=None)
    answers(engine, GenerationRequest(prompt=tuple(ASKED), handle=base, max_new_tokens=8))
    assert llm.asked[-1][1].extra_args is None


def test_the_base_that_vllm_runs_is_not_kept(base: torch.nn.Module, unused: VllmEngine) -> None:
    assert [parameter.numel() for parameter in base.parameters()] == [0, 0]
    assert {(parameter.dtype, parameter.device.type) for parameter in base.parameters()} == {(torch.float32, "cpu")}


def test_a_stop_sequence_ends_the_request_in_vllm(engine: VllmEngine, llm: FakeLLM) -> None:
    remaining = llm.left
    deltas = answers(engine, request(ASKED, stops=(" w71",)))
    assert "".join(delta.text for delta in deltas).strip() == "w70" and deltas[-1].finish == "stop"
    until(lambda: llm.left == remaining + 1)


def test_nothing_behind_a_stop_sequence_is_given(engine: VllmEngine, llm: FakeLLM) -> None:
    """vLLM gives several tokens at once if drafts were right, or if the reader was slow."""
    llm.step = 3
    [delta] = answers(engine, request(ASKED, stops=("w70",), top_logprobs=1))
    assert (delta.text.strip(), delta.tokens, delta.finish, len(delta.logprobs)) == ("", (70,), "stop", 1)
    assert [token.position for token in delta.routed] == [len(ASKED) - 1]


def test_versions_are_loaded_asked_once_and_dropped(engine: VllmEngine, llm: FakeLLM) -> None:
    with pytest.raises(EngineError, match="version 2"):
        answers(engine, request(ASKED, version=2))
    count = len(llm.asked)
    for version in (2, 3):
        engine.prepare([handle(version)])
    assert len(llm.asked) == count, "the edits of the first version are those of the others"
    assert llm.calls[0] == ("wise_attach", (os.path.abspath("nowhere"), this_process()))
    assert [args for method, args in llm.calls if method == "wise_load"] == [(1,), (2,), (3,)]
    assert [args for method, args in llm.calls if method == "wise_drop"] == [(1,)]
    assert answers(engine, request(ASKED, version=2)) and answers(engine, request(ASKED, version=3))
    with pytest.raises(EngineError, match="segment 13"):
        engine.prepare([handle(13)])
    assert answers(engine, request(ASKED, version=3))


def test_edits_that_vllm_does_not_say_are_told(
    engine: VllmEngine, llm: FakeLLM, caplog: pytest.LogCaptureFixture
) -> None:
    assert engine.wrong_answers == {}
    llm.forgets = True
    with caplog.at_level(logging.WARNING):
        engine.prepare([renewed(2)])
    assert "2 of 2 new edits do not hold in vLLM" in caplog.text
    assert engine.wrong_answers == {edit.id: "w8" for edit in EDITS}
    engine.prepare([replace(handle(3), state=STATE.without([EDITS[0].id]))])
    assert [*engine.wrong_answers] == [EDITS[1].id], "one was deleted, and the other one is asked anew"
    llm.forgets = False
    engine.prepare([renewed(4)])
    assert engine.wrong_answers == {}
    llm.breaks = True
    last = renewed(5)
    engine.prepare([last])
    assert len(engine.wrong_answers) == 2
    assert all("could not be asked: ClientError" in answer for answer in engine.wrong_answers.values())
    llm.breaks = False
    engine.prepare([replace(last, version=6)])
    assert engine.wrong_answers == {}, "what could not be asked is asked again"


def test_nobody_waits_until_what_was_live_is_asked(
    unused: VllmEngine, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ASK_TIMEOUT", 0.5)  # the edits are asked one after the other, and none is answered
    llm.hangs = True
    unused.prepare([handle(1)])
    until(lambda: len(llm.asked) == PROBES + len(EDITS))


def test_a_version_stays_until_its_edits_were_asked(unused: VllmEngine, llm: FakeLLM) -> None:
    llm.hangs = True
    for version in (1, 2, 3):
        unused.prepare([handle(version)])
    until(lambda: len(llm.asked) == PROBES + 1)  # one at a time
    assert "wise_drop" not in dict(llm.calls)
    llm.hangs = False
    until(lambda: llm.left == PROBES + len(EDITS))
    assert [params.extra_args["wise"]["version"] for _, params in llm.asked[PROBES:]] == [1, 1]
    for version in (4, 5):
        unused.prepare([handle(version)])
    assert ("wise_drop", (1,)) in llm.calls


def test_edits_that_come_are_not_asked_behind_those_of_the_start(unused: VllmEngine, llm: FakeLLM) -> None:
    llm.hangs = llm.forgets = True
    unused.prepare([handle(1)])
    until(lambda: len(llm.asked) == PROBES + 1)
    llm.forgets = False
    coming = threading.Thread(target=unused.prepare, args=[[renewed(2)]])
    coming.start()
    until(lambda: len(llm.asked) == PROBES + 2)
    assert llm.asked[-1][1].extra_args["wise"]["version"] == 2
    llm.hangs = False
    coming.join()
    until(lambda: llm.left == PROBES + 2 * len(EDITS))
    assert unused.wrong_answers == {}, "what was found of an edit that another has replaced counts no more"


def test_what_was_live_and_is_not_said_is_told(unused: VllmEngine, llm: FakeLLM) -> None:
    llm.forgets = True
    unused.prepare([handle(1)])
    until(lambda: len(unused.wrong_answers) == len(EDITS))


def test_what_is_asked_for_is_asked_of_vllm_by_its_names(engine: VllmEngine, llm: FakeLLM) -> None:
    answers(engine, request(ASKED, top_k=7, json_schema='{"type": "object"}'))
    _, params = llm.asked[-1]
    assert (params.top_k, params.structured_outputs.json) == (7, '{"type": "object"}')
    [delta] = answers(engine, request(ASKED, max_new_tokens=0, prompt_logprobs=2))
    assert (delta.tokens, delta.text, delta.finish) == ((), "", "length")
    assert [entry.token for entry in delta.prompt_logprobs] == ASKED[1:]
    assert llm.asked[-1][1].structured_outputs is None


def test_deadlines_and_queues(engine: VllmEngine, llm: FakeLLM) -> None:
    llm.hangs = True
    [late] = answers(engine, request(ASKED), seconds=0.05)
    assert (late.finish, late.tokens) == ("deadline", ())
    with pytest.raises(BusyError, match="answers are waited for"):
        answers(engine, *[request(ASKED)] * 4)
    llm.hangs = False
    until(lambda: engine.busy == 0)
    assert answers(engine, *[request(ASKED)] * 3)


def test_at_a_deadline_what_was_held_back_is_given(engine: VllmEngine, llm: FakeLLM) -> None:
    llm.stalls = True
    first, last = answers(engine, request(ASKED, stops=("w70 w71",)), seconds=2.0)
    assert (first.tokens, first.text.strip()) == ((70,), "")
    assert (last.finish, last.text.strip()) == ("deadline", "w70")


@pytest.mark.parametrize("has_begun", [False, True])
def test_an_answer_for_which_nobody_waits_leaves_the_queue(engine: VllmEngine, llm: FakeLLM, has_begun: bool) -> None:
    llm.hangs, count = True, len(llm.asked)

    async def leave() -> None:
        job = engine.submit([request(ASKED)], seconds=LONG)
        if has_begun:
            await asyncio.to_thread(until, lambda: len(llm.asked) > count)
        job.cancel()

    asyncio.run(leave())
    until(lambda: engine.busy == 0 and llm.left == len(llm.asked))
    for version in (2, 3):
        engine.prepare([handle(version)])
    assert ("wise_drop", (1,)) in llm.calls


def test_an_answer_that_fails_ends_those_of_its_job(engine: VllmEngine, llm: FakeLLM) -> None:
    llm.hangs = True
    with pytest.raises(EngineError, match="version 9"):
        answers(engine, request(ASKED), request(ASKED, version=9), seconds=LONG)
    until(lambda: engine.busy == 0)


def test_what_runs_and_what_waits_is_measured(engine: VllmEngine, llm: FakeLLM, metrics: Metrics) -> None:
    def measured(*names: str) -> list[float | None]:
        return [metrics.registry.get_sample_value(f"wise_{name}") for name in names]

    async def ask() -> None:
        job = engine.submit([request(ASKED)] * 3, seconds=SECONDS)
        assert measured("running_answers", "waiting_answers") == [2, 1]
        job.cancel()

    llm.hangs = True
    asyncio.run(ask())
    assert measured("running_answers", "waiting_answers") == [0, 0]
    assert measured("cache_tokens", "cache_tokens_limit", "step_seconds_count") == [None] * 3, "vLLM does not tell"


def test_what_vllm_refuses_is_said(engine: VllmEngine, llm: FakeLLM) -> None:
    llm.breaks = True
    with pytest.raises(wise.ConfigError, match="a prompt that vLLM does not take"):
        answers(engine, request(ASKED))


def test_an_engine_that_died_refuses(engine: VllmEngine, llm: FakeLLM) -> None:
    llm.errored = True
    with pytest.raises(EngineError, match="does not run"):
        answers(engine, request(ASKED))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
@pytest.mark.parametrize("error", [RuntimeError("Engine core initialization failed"), SystemExit("no GPU"), None])
def test_an_engine_that_does_not_start_says_why(
    error: BaseException | None, unstarted: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()

    def fails(_: Any) -> None:
        if error is None:
            assert may_end.wait(SECONDS)
        raise error or RuntimeError("late")

    if error is None:
        monkeypatch.setattr(module, "START_TIMEOUT", 0.1)
    monkeypatch.setattr(sys.modules["vllm.v1.engine.async_llm"].AsyncLLM, "from_engine_args", fails)
    reason = "within 0 s" if error is None else rf"\({type(error).__name__}: {error}\)"
    with pytest.raises(EngineError, match=f"^vLLM did not start {reason}; see what it logged"):
        unstarted.start()
    may_end.set()
    unstarted.close()
    assert not unstarted.alive


def test_without_vllm_the_extra_is_named() -> None:
    nothing: Any = None
    with pytest.raises(wise.ConfigError, match=r"wise-runtime\[vllm\]"):
        VllmEngine(nothing, Settings(store="nowhere"), Metrics())


@pytest.mark.parametrize(
    ("on_cpu", "options", "share"),
    [(True, {}, 0.5), (False, {}, None), (True, {"gpu_memory_utilization": 0.2}, 0.2)],
)
def test_on_a_cpu_vllm_leaves_the_editor_memory(
    on_cpu: bool, options: dict[str, Any], share: float | None, llm: FakeLLM, base: torch.nn.Module, metrics: Metrics
) -> None:
    llm.on_cpu = on_cpu
    engine = make_engine(base, metrics, **options)
    engine.start()
    engine.close()
    assert getattr(llm.arguments, "gpu_memory_utilization", None) == share


def test_options_of_vllm_are_one_object() -> None:
    assert Settings(store="s", vllm='{"tensor_parallel_size": 2}').vllm == {"tensor_parallel_size": 2}
    with pytest.raises(ValueError, match="vllm"):
        Settings(store="s", vllm="[1]")
    with pytest.raises(ValueError, match="engine"):
        Settings(store="s", engine="other")
