"""Edits that are fitted by other processes are those that this one fits, also when a process dies; nothing else is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chats import chat_model
from dying import killed_while_it_fits
from tiny import same_state, text

import wise
from wise.memory.state import MemoryState
from wise.training.generation import between_steps, checking

EDITS = [
    wise.Edit(id=f"e{i}", prompt=text([50 + i // 2, 60 + i, 52]), target=text([70 + i]), subject=text([50 + i // 2]))
    for i in range(10)
]
"""Two of each subject, in three batches."""


class Dying(Executor):
    """Its workers die before they have done anything, so many times; after that it does all at once."""

    def __init__(self, times: list[int]) -> None:
        self.times = times

    def submit(self, function: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        found: Future[Any] = Future()
        if self.times:
            found.set_exception(BrokenExecutor(f"worker {self.times.pop()}"))
        else:
            found.set_result(function(*given, **named))
        return found


@pytest.fixture(scope="module")
def alone() -> MemoryState:
    """What one process makes."""
    model = chat_model()
    assert not model.edit(EDITS).failed
    return model.state


def edited(workers: wise.Workers) -> tuple[wise.WiseModel, list[int]]:
    model, done = chat_model(), list[int]()
    with workers:
        model.use_workers(workers)
        model.edit(EDITS, progress=done.append)
    return model, done


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_processes_make_what_one_makes(count: int, alone: MemoryState) -> None:
    model, done = edited(wise.Workers(chat_model, count))
    assert same_state(model.state, alone)
    assert done == sorted(done) and done[-1] == len(EDITS)


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_fits_costs_no_edit(
    alone: MemoryState, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marker = tmp_path / "died"
    model, _ = edited(wise.Workers(partial(killed_while_it_fits, marker), 2))
    assert marker.exists() and "a worker died; what it fitted is fitted again" in caplog.text
    assert same_state(model.state, alone)


@pytest.mark.slow
@pytest.mark.ray
def test_tasks_of_ray_make_what_one_process_makes_also_when_one_is_killed(alone: MemoryState, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'wise-runtime[ray]'")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0"}
    found_here = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=80_000_000, runtime_env=found_here
    )
    try:
        marker = tmp_path / "died"
        load = partial(killed_while_it_fits, marker)
        model, _ = edited(wise.Workers(load, partial(wise.RayTasks, num_cpus=1)))
        assert marker.exists() and same_state(model.state, alone)
    finally:
        ray.shutdown()


def test_workers_that_die_are_tried_again_within_bounds_and_nothing_is_applied_after_that(
    alone: MemoryState, caplog: pytest.LogCaptureFixture
) -> None:
    times = [1, 2]
    model, done = edited(wise.Workers(chat_model, lambda: Dying(times)))
    assert same_state(model.state, alone) and not times and done == sorted(done)

    model, times = chat_model(), [1] * 9
    with wise.Workers(chat_model, lambda: Dying(times)) as workers:
        model.use_workers(workers)
        with pytest.raises(wise.WorkerError, match="died 3 times while they fitted 10 edits, of which nothing was"):
            model.edit(EDITS)
        assert not model.edits
        told = [text.partition("(")[2] for text in caplog.messages if "a worker died" in text]
        assert told == ["1 of 2)", "1 of 2)", "2 of 2)"], "as often as it is fitted again, and not the last time"
        assert model.edit(EDITS[0]).count("verified") == 1  # a single batch is fitted here
        model.use_workers(None)
        assert not model.edit(EDITS[1:]).failed


def test_another_model_than_the_one_that_is_edited_is_refused() -> None:
    model = chat_model()
    other = replace(model.wise_config, max_steps=7)

    def load() -> wise.WiseModel:
        found = chat_model()
        found.wise_config = other
        return found

    with wise.Workers(load, lambda: ThreadPoolExecutor(1)) as workers:
        model.use_workers(workers)
        with pytest.raises(wise.ConfigError, match="another settings than the one that is edited"):
            model.edit(EDITS)
    assert not model.edits


def test_what_takes_too_long_ends_and_what_is_not_wanted_any_more_too() -> None:
    model = chat_model()
    with wise.Workers(chat_model, lambda: ThreadPoolExecutor(1), cpu_seconds=0) as workers:
        model.use_workers(workers)
        with pytest.raises(wise.EditError, match="fitting 4 edits took more than 0 s of CPU time"):
            model.edit(EDITS)

        def stop() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), model.evaluating(), checking(stop):
            model.trainer.edit(model.state, EDITS, serve=model.serving)
    assert not model.edits


def test_measuring_the_base_takes_no_time_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, built, build = chat_model(), list[object](), wise.model.build_trainer

    def building(*given: Any, **more: Any) -> Any:
        between_steps()
        built.append(build(*given, **more))
        return built[-1]

    monkeypatch.setattr("wise.model.build_trainer", building)
    with wise.Workers(chat_model, lambda: ThreadPoolExecutor(1), cpu_seconds=0) as workers:
        model.use_workers(workers)
        with pytest.raises(wise.EditError, match="fitting 4 edits took more than 0 s of CPU time"):
            model.edit(EDITS)
    assert len(built) == 2, "here and in the worker"


def test_workers_are_refused_where_edits_share_slots_and_where_there_are_none() -> None:
    with pytest.raises(wise.ConfigError, match="mode='merge' fits edits together"):
        chat_model(mode="merge").use_workers(wise.Workers(chat_model))
    with pytest.raises(wise.ConfigError, match="workers=0: expected at least 1"):
        wise.Workers(chat_model, 0)
