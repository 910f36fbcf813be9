"""An interrupt at any line leaves the model as it was, or as it was to become, and nothing in between."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from repository import ROOT
from tiny import memory_by_hand, put, reading, tiny_model, tiny_tokenizer, wrap_tiny

import wise
from wise.memory.modules import restoring

ROOMS = ("wise", "memory", "router", "training")
"""Where lines of ours lie; an environment may lie beside them."""
LOCKS = ("with self._lock", "with _lock")
"""Python does not look for interrupts between the end of such a block and the release of its lock."""
POINTS = 16
"""At so many lines, spread over a call, it is interrupted."""


@cache
def is_ours(file: str) -> bool:
    return any(Path(file).is_relative_to(ROOT / room) for room in ROOMS)


@cache
def takes_a_lock(file: str, number: int) -> bool:
    return linecache.getline(file, number).lstrip().startswith(LOCKS)


def lines_of(call: Callable[[], Any], interrupted_at: int | None = None) -> int:
    """How many lines of ours a call runs; at one of them it is interrupted."""
    count, before = 0, sys.gettrace()

    def line(entered: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if takes_a_lock(entered.f_code.co_filename, entered.f_lineno):
            return line
        count += event == "line"
        if event == "line" and count == interrupted_at:
            sys.settrace(before)
            raise KeyboardInterrupt
        return line

    def frame(entered: FrameType, _event: str, _: Any) -> Any:
        return line if is_ours(entered.f_code.co_filename) else None

    sys.settrace(frame)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return count


def look(model: Any) -> Any:
    """What a call may change for a while: modules, their modes and hooks, settings."""
    modules = [(name, id(module), module.training) for name, module in model.named_modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return modules, hooks, id(model.generation_config)


def differing(prepare: Callable[[], Any], call: Callable[[], Any], seen: Callable[[], Any]) -> tuple[int, set[int]]:
    """How many lines a call runs, and those after which what is seen is neither as before nor as after a whole call."""
    prepare()
    before = seen()
    total = lines_of(call)
    allowed = (before, seen())
    bad = set()
    for at in range(1, total + 1, max(1, total // POINTS)):
        prepare()
        lines_of(call, at)
        if seen() not in allowed:
            bad.add(at)
    return total, bad


modes = pytest.mark.parametrize("mode", ["retrieve", "hybrid"])


@modes
def test_asking_reading_and_disabling_leave_everything_as_it_was(mode: str) -> None:
    wrapped = wrap_tiny("llama", mode)
    wrapped.model.train()
    _ = wrapped.encoder
    memory = wrapped.layer.memory

    def disabled() -> None:
        with wrapped.disabled():
            pass

    calls = {
        "ask": lambda: wrapped.ask("w5 w6", max_new_tokens=1),
        "disabled": disabled,
        "route": lambda: wrapped.route(torch.tensor([[5, 6]])),
    }
    for name, call in calls.items():
        total, bad = differing(lambda: None, call, lambda: (look(wrapped.model), wrapped.layer.memory is memory))
        assert total > 5 and not bad, name


@modes
def test_what_is_served_is_swapped_with_its_edits(mode: str) -> None:
    wrapped = wrap_tiny("llama", mode)
    old, new = wrapped.state, memory_by_hand(wrapped, seed=1)

    def seen() -> Any:
        memory = wrapped.layer.memory
        assert memory is not None
        return wrapped.state is old, wrapped.served is wrapped.state, memory.state is wrapped.state

    total, bad = differing(lambda: put(wrapped, old), lambda: put(wrapped, new), seen)
    assert total > 5 and not bad


@pytest.mark.slow
@modes
def test_a_model_is_wrapped_and_unwrapped_whole_or_not_at_all(mode: str) -> None:
    model = tiny_model("llama")
    config = wise.WiseConfig(mode=mode)
    made: list[wise.WiseModel] = []

    def wrap() -> None:
        made.append(wise.wrap(model, tiny_tokenizer(), config, **reading(mode)))

    def unwrap() -> None:
        for wrapped in made:
            wrapped.unwrap()
        made.clear()

    plain = look(model)
    for at in range(1, lines_of(wrap) + 1, 7):
        unwrap()
        lines_of(wrap, at)
        assert made or look(model) == plain, at
    unwrap()
    wrap()
    for at in range(1, lines_of(made[0].unwrap) + 1):
        unwrap()
        wrap()
        lines_of(made[0].unwrap, at)
        made[0].unwrap()
        assert look(model) == plain, at


def test_a_change_without_a_guard_would_be_noticed() -> None:
    """The control: what a careless block leaves behind is found."""
    model = tiny_model("llama").train()
    careless = compile("model.eval()\nx = 1\nmodel.train()\n", str(ROOT / "wise" / "careless.py"), "exec")
    _, bad = differing(model.train, lambda: exec(careless, {"model": model}), lambda: look(model))
    assert bad


def test_restoring_is_done_again_if_it_is_cut_off() -> None:
    done: list[int] = []

    def restore() -> None:
        done.append(len(done))
        if len(done) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), restoring(restore):
        pass
    assert done == [0, 1]
