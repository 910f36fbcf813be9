"""The additions of a worker at each step, laid out as vLLM's runners do; no answer lacks its edit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from chats import TURNS
from followed import WIDTH, answer_router, answer_state
from tiny import EOS
from torch import Tensor

import wise
from wise.memory.side_memory import NO_SLOT
from wise.router.chat_template import conversation_ids
from wise.router.hybrid import HybridRouter
from wise.vllm.addition import Addition
from wise.vllm.requests import carried_edits
from wise.vllm.runners import observe
from wise.vllm.sequences import FollowedSequences, ServedMemory

STEP = 64
"""Tokens of the longest step."""
STATE = answer_state()


@pytest.fixture(scope="module")
def router() -> HybridRouter:
    return answer_router(STATE)


class RunnerV1:
    """Lays out steps with the names of vLLM's first runner; its layer records the additions."""

    def __init__(self, addition: Addition) -> None:
        self.addition, self.skips_layer, self.skips_layout = addition, False, False
        self.input_batch = SimpleNamespace(req_ids=[], num_computed_tokens_cpu=np.zeros(8, dtype=np.int32))
        self.input_ids = SimpleNamespace(gpu=torch.zeros(STEP, dtype=torch.int32))
        self.output = torch.zeros(0)

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: np.ndarray) -> None:
        """Does nothing: `execute_model` has laid out the step."""

    def execute_model(self, scheduled: Any) -> Tensor:
        self.input_batch.req_ids = list(scheduled.num_scheduled_tokens)
        self.input_batch.num_computed_tokens_cpu[: len(scheduled.computed)] = scheduled.computed
        self.input_ids.gpu[: len(scheduled.ids)] = torch.tensor(scheduled.ids)
        if not self.skips_layout:
            self._prepare_inputs(scheduled, np.array([*scheduled.num_scheduled_tokens.values()]))
        self.output = torch.zeros(len(scheduled.ids), self.addition.width)
        if not self.skips_layer:
            self.addition.add(self.output)
        return self.output


class RunnerV2(RunnerV1):
    """The same as vLLM's second runner."""

    _prepare_inputs = None  # type: ignore[assignment]

    def prepare_inputs(self, scheduler_output: Any, *_: Any) -> Any:
        counts = [*scheduler_output.num_scheduled_tokens.values()]
        return SimpleNamespace(
            req_ids=self.input_batch.req_ids,
            query_start_loc_np=np.cumsum([0, *counts]),
            num_computed_tokens_np=self.input_batch.num_computed_tokens_cpu,
            input_ids=self.input_ids.gpu,
        )

    def execute_model(self, scheduled: Any) -> Tensor:
        self._prepare_inputs = lambda *_: self.prepare_inputs(scheduled)  # type: ignore[method-assign]
        return super().execute_model(scheduled)


@pytest.fixture(params=[RunnerV1, RunnerV2], ids=["V1", "V2"])
def worker(request: pytest.FixtureRequest, router: HybridRouter) -> tuple[Any, FollowedSequences]:
    """An observed runner, and its followed sequences, with version 3 loaded."""
    addition = Addition(STEP, WIDTH, dtype=torch.float32, device=None, adds=True)
    followed = FollowedSequences(addition, record=True)
    followed.memories[3, "default"] = ServedMemory(state=STATE, router=router)
    runner = request.param(addition)
    assert observe(runner, followed) == request.param.__name__[-2:]
    return runner, followed


def carried(router: HybridRouter, ids: list[int]) -> dict[str, Any] | None:
    return carried_edits(ids, router, STATE, version=3, namespace="default", stops={EOS}).extra_args


def step(
    *rows: tuple[str, list[int], int], new: dict[str, tuple[list[int], Any]] | None = None, finished: Any = ()
) -> Any:
    """rows: of each request the ids that are read and the position of the first; new: prompts, with what they carry."""
    return SimpleNamespace(
        finished_req_ids={*finished},
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, prompt_token_ids=prompt, sampling_params=SimpleNamespace(extra_args=args))
            for name, (prompt, args) in (new or {}).items()
        ],
        num_scheduled_tokens={name: len(ids) for name, ids, _ in rows},
        computed=[first for _, _, first in rows],
        ids=[i for _, ids, _ in rows for i in ids],
    )


def reference(router: HybridRouter, ids: list[int]) -> Tensor:
    """`[n, d]`: what the library adds at each token."""
    row = np.array(ids)
    out = torch.zeros(len(ids), WIDTH)
    chat, begins = router.begins(row, 0)
    for place, decision, value in router.answer_places(row, 0, begins, chat):
        if value != NO_SLOT:
            out[place] = STATE.slots[decision.slot].values[value]  # type: ignore[attr-defined]
    return out


def test_what_is_added_is_what_the_library_adds(router: HybridRouter, worker: tuple[Any, FollowedSequences]) -> None:
    runner, followed = worker
    prompt = conversation_ids(router.inputs.tokenizer, TURNS)
    ids = [*prompt, 70, 71, 33]
    expected, cut = reference(router, ids), len(prompt) - 3
    assert expected.any(1).sum() >= 3
    new = {"other": ([33] * 4, None), "a": (prompt, carried(router, prompt))}
    pieces = [
        runner.execute_model(step(("other", [33] * 4, 0), ("a", prompt[:cut], 0), new=new))[4:],
        runner.execute_model(step(("a", prompt[cut:], cut), ("other", [33], 4)))[:-1],
        runner.execute_model(step(("other", [33], 5), ("a", [70, 9, 9], len(prompt))))[1:2],  # two drafts are refused
        runner.execute_model(step(("a", [71, 33], len(prompt) + 1))),
    ]
    assert torch.equal(torch.cat(pieces), expected)
    assert followed.recorded is not None and sorted(followed.recorded["a"]) == expected.any(1).nonzero()[:, 0].tolist()
    assert "other" not in followed.recorded


def test_cached_tokens_are_known_without_being_read(
    router: HybridRouter, worker: tuple[Any, FollowedSequences]
) -> None:
    runner, _ = worker
    prompt = conversation_ids(router.inputs.tokenizer, TURNS)
    last = len(prompt) - 1
    out = runner.execute_model(step(("a", prompt[last:], last), new={"a": (prompt, carried(router, prompt))}))
    assert torch.equal(out, reference(router, prompt)[last:]) and out.any()


def test_what_was_read_stays_known_when_it_is_read_again(
    router: HybridRouter, worker: tuple[Any, FollowedSequences]
) -> None:
    """A request that was preempted twice may find in the cache tokens that it read before the first time."""
    runner, _ = worker
    prompt = conversation_ids(router.inputs.tokenizer, TURNS)
    ids, length = [*prompt, 70, 71, 33], len(prompt)
    runner.execute_model(step(("a", ids[:-1], 0), new={"a": (prompt, carried(router, prompt))}))
    runner.execute_model(step(("a", ids[: length + 1], 0)))
    out = runner.execute_model(step(("a", ids[length + 2 :], length + 2)))
    assert torch.equal(out, reference(router, ids)[length + 2 :])


def test_a_request_keeps_its_version_when_it_is_dropped(
    router: HybridRouter, worker: tuple[Any, FollowedSequences]
) -> None:
    runner, followed = worker
    prompt = conversation_ids(router.inputs.tokenizer, TURNS)
    out = runner.execute_model(step(("a", prompt, 0), new={"a": (prompt, carried(router, prompt))}))
    followed.drop(3)
    after = runner.execute_model(step(("a", [70], len(prompt))))
    assert torch.equal(torch.cat([out, after]), reference(router, [*prompt, 70])) and after.any()
    with pytest.raises(RuntimeError, match="version 3"):
        runner.execute_model(step(("b", prompt, 0), new={"b": (prompt, carried(router, prompt))}))


def test_a_request_that_ended_is_forgotten(router: HybridRouter, worker: tuple[Any, FollowedSequences]) -> None:
    runner, followed = worker
    prompt = conversation_ids(router.inputs.tokenizer, TURNS)
    runner.execute_model(step(("a", prompt, 0), new={"a": (prompt, carried(router, prompt))}))
    assert followed.wants("a")
    out = runner.execute_model(step(("a", prompt, 0), new={"a": (prompt, None)}, finished=["a"]))
    assert not followed.wants("a") and not out.any()


def test_an_answer_without_its_edit_is_not_given(router: HybridRouter, worker: tuple[Any, FollowedSequences]) -> None:
    runner, _ = worker
    prompt = conversation_ids(router.inputs.tokenizer, TURNS)
    new = {"a": (prompt, carried(router, prompt))}
    runner.skips_layer = True
    with pytest.raises(RuntimeError, match="passed the edited layer by"):
        runner.execute_model(step(("a", prompt, 0), new=new))
    runner.skips_layer, runner.skips_layout = False, True
    with pytest.raises(RuntimeError, match="did not lay it out"):
        runner.execute_model(step(("a", prompt, 0)))
    runner.skips_layout = False
    with pytest.raises(RuntimeError, match=f"reads token {len(prompt) + 4}"):
        runner.execute_model(step(("a", [70], len(prompt) + 4)))
    runner.skips_layer = True  # without an edit in the step nothing is missing
    assert not runner.execute_model(step(("b", [33], 0), new={"b": ([33], None)})).any()


def test_a_probe_is_added_at_the_last_token_of_its_prompt(worker: tuple[Any, FollowedSequences]) -> None:
    runner, _ = worker
    out = runner.execute_model(step(("p", [1, 2, 3], 0), new={"p": ([1, 2, 3], {"wise": {"probe": True}})}))
    assert out[2].abs().min() > 100 and not out[:2].any()


def test_other_ranks_add_nothing_and_need_no_memory(router: HybridRouter) -> None:
    addition = Addition(STEP, WIDTH, dtype=torch.float32, device=None, adds=False)
    runner = RunnerV1(addition)
    observe(runner, FollowedSequences(addition))
    prompt = conversation_ids(router.inputs.tokenizer, TURNS)
    out = runner.execute_model(step(("a", prompt, 0), new={"a": (prompt, carried(router, prompt))}))
    assert not out.any()


def test_an_unknown_runner_is_refused() -> None:
    class Runner:
        def _prepare_inputs(self, batch: Any) -> None: ...
        def execute_model(self, scheduled: Any) -> None: ...

    addition = Addition(STEP, WIDTH, dtype=torch.float32, device=None, adds=True)
    with pytest.raises(wise.ConfigError, match="model runner"):
        observe(Runner(), FollowedSequences(addition))
