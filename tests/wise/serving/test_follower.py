"""A version goes live only when the engine has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serving import running
from waiting import until

from wise.serving.engines import EngineError, MemoryHandle
from wise.serving.engines.local import LocalEngine


def test_an_engine_prepares_a_version_before_requests_get_it(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        follower, prepared = service.service.follower, list[tuple[int, int]]()

        class Preparing(LocalEngine):
            def __init__(self) -> None:
                """Only prepares."""

            def prepare(self, handles: Sequence[MemoryHandle]) -> None:
                prepared.append((handles[0].version, follower.current.version))
                if len(prepared) == 2:
                    raise EngineError("the workers are busy")

        follower.serve_with(Preparing())
        service.edit({"prompt": "The capital of France is", "target": "Lyon", "subject": "France"})
        assert prepared == [(0, 0), (1, 0), (1, 0)], "what the engine refuses is tried again"
        until(lambda: follower.current.version == 1)
