"""The one private seam with vLLM: which rows of a step belong to which request.

vLLM has two model runners. Each has an adapter here, which wraps two methods of the runner: the method that lays out a
step, and the method that runs it. Everything else that the plug-in uses of vLLM is public.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

from torch import Tensor

from wise.errors import ConfigError

if TYPE_CHECKING:
    from wise.vllm.sequences import FollowedSequences


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """The tokens that one step reads of one request."""

    request: str
    start: int
    """Index of its first token among the tokens of the step."""
    first: int
    """Position of that token in its sequence."""
    count: int


@dataclass(frozen=True, kw_only=True, eq=False)
class StepLayout:
    """One forward pass of a runner."""

    rows: tuple[StepRow, ...]
    ids: Tensor
    """`[n]`: all tokens of the step, padding included."""


def observe(runner: Any, observer: FollowedSequences) -> str:
    """Tells `observer` about a runner's steps; returns its kind. Raises ConfigError for an unknown runner."""
    for name, method, arguments, layout in (
        ("V1", "_prepare_inputs", ("scheduler_output", "num_scheduled_tokens"), _layout_v1),
        ("V2", "prepare_inputs", ("scheduler_output",), _layout_v2),
    ):
        function = getattr(runner, method, None)
        if function is not None and tuple(signature(function).parameters)[: len(arguments)] == arguments:
            _wrap(runner, method, layout, observer)
            return name
    raise ConfigError(
        f"{type(runner).__module__}.{type(runner).__name__}: a model runner that this release of wise does not know"
    )


Layout = Callable[[Any, "FollowedSequences", tuple[Any, ...], Any], StepLayout]
"""Of a runner, the observer, the arguments of the method that lays out a step, and its result."""


def _wrap(runner: Any, method: str, layout: Layout, observer: FollowedSequences) -> None:
    prepare, execute = getattr(runner, method), runner.execute_model

    def prepare_inputs(*args: Any, **options: Any) -> Any:
        result = prepare(*args, **options)
        observer.lay_out(layout(runner, observer, args, result))
        return result

    def execute_model(scheduled: Any, *args: Any, **options: Any) -> Any:
        observer.begin(scheduled)
        result = execute(scheduled, *args, **options)
        observer.end()
        return result

    setattr(runner, method, prepare_inputs)
    runner.execute_model = execute_model


def _layout_v1(runner: Any, observer: FollowedSequences, args: tuple[Any, ...], _result: Any) -> StepLayout:
    batch, counts = runner.input_batch, args[1].tolist()
    computed = batch.num_computed_tokens_cpu
    rows, start = [], 0
    for place, (request, count) in enumerate(zip(batch.req_ids, counts, strict=False)):
        if observer.wants(request):
            rows.append(StepRow(request=request, start=start, first=int(computed[place]), count=count))
        start += count
    return StepLayout(rows=tuple(rows), ids=runner.input_ids.gpu)


def _layout_v2(_runner: Any, observer: FollowedSequences, _args: tuple[Any, ...], batch: Any) -> StepLayout:
    starts, computed = batch.query_start_loc_np, batch.num_computed_tokens_np
    rows = [
        StepRow(
            request=request,
            start=int(starts[place]),
            first=int(computed[place]),
            count=int(starts[place + 1] - starts[place]),
        )
        for place, request in enumerate(batch.req_ids)
        if observer.wants(request)
    ]
    return StepLayout(rows=tuple(rows), ids=batch.input_ids)
