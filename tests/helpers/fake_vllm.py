"""vLLM replaced by what it promises: an engine that says an edit's answer where a request carries its plan."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from copy import copy
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import pytest
from followed import SAID
from tiny import EOS


class ClientError(Exception):
    """Of a request that vLLM refuses."""


class NotFoundError(ClientError):
    """What it asks for is not there."""


class RetryableRequestError(Exception):
    """It may be asked again."""


class FakeLLM:
    """Says the edit's answer where a plan says so, and else `w8`; in steps of `step` tokens."""

    def __init__(self) -> None:
        self.arguments, self.on_cpu = SimpleNamespace(), True
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.asked: list[tuple[dict[str, Any], Any]] = []
        self.vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_size=1))
        self.ranks: list[int | None] = []
        """Of the data parallel engines that were asked."""
        self.errored = self.hangs = self.stalls = self.forgets = self.breaks = False
        """hangs: before the first step of an answer; stalls: after it."""
        self.step, self.left = 1, 0

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        self.calls.append((method, args))
        if (method, args) == ("wise_load", (13,)):
            raise RuntimeError("segment 13 is damaged")
        return [{"runner": "V1"} if method == "wise_attach" else True]

    async def generate(
        self, prompt: dict[str, Any], params: Any, request_id: str, *, data_parallel_rank: int | None = None, **_: Any
    ) -> AsyncIterator[Any]:
        self.asked.append((prompt, params))
        self.ranks.append(data_parallel_rank)
        if self.breaks:
            raise ClientError("a prompt that vLLM does not take")
        carried = (params.extra_args or {}).get("wise", {})
        begins = carried.get("plan", {}).get("begins", [])
        said = SAID[begins[-1][1]][0] if begins and not self.forgets else [8, EOS]
        try:
            while self.hangs:
                await asyncio.sleep(0)
            said = said[: params.max_tokens]
            for first in range(0, len(said), self.step):
                new = said[first : first + self.step]
                told = SimpleNamespace(logprob=-1.0 - 5.0 * bool(carried.get("probe")))
                finish = "stop" if EOS in new else "length" if params.max_tokens == 1 else None
                logprobs = [{token: told} for token in new]
                one = SimpleNamespace(index=0, token_ids=new, logprobs=logprobs, finish_reason=finish)
                read = None
                if getattr(params, "prompt_logprobs", None) is not None:
                    read = [None, *({i: SimpleNamespace(logprob=-2.0)} for i in prompt["prompt_token_ids"][1:])]
                yield SimpleNamespace(outputs=[one], prompt_logprobs=read)
                while self.stalls:
                    await asyncio.sleep(0)
        finally:
            self.left += 1

    def shutdown(self) -> None:
        self.errored = True


class SamplingParams:
    __struct_fields__ = ("temperature", "top_p", "top_k", "seed", "max_tokens", "prompt_logprobs")

    def __init__(self, **given: Any) -> None:
        self.extra_args: dict[str, Any] | None = None
        self.n, self.ignore_eos, self.stop_token_ids, self.output_kind = 1, False, [], SimpleNamespace(name="DELTA")
        vars(self).update(given)

    def clone(self) -> Self:
        return copy(self)


def installed(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    """Stands in the place of vLLM for one test."""
    found = FakeLLM()

    def started(arguments: SimpleNamespace) -> FakeLLM:
        found.arguments = arguments
        return found

    contents = {
        "vllm": {"SamplingParams": SamplingParams},
        "vllm.sampling_params": {
            "RequestOutputKind": SimpleNamespace(DELTA=1),
            "StructuredOutputsParams": SimpleNamespace,
        },
        "vllm.exceptions": {
            "VLLMClientError": ClientError,
            "VLLMNotFoundError": NotFoundError,
            "RetryableRequestError": RetryableRequestError,
        },
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: found.on_cpu)},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": SimpleNamespace},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": SimpleNamespace(from_engine_args=started)},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return found
