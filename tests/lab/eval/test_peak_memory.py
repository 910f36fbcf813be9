"""The most memory that a block held: also for a moment only, and where the process had kept freed memory."""

from __future__ import annotations

import pytest
import torch

from wise.lab.eval.peak_memory import STATUS, peak_memory

MIB = 2**20
pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="only Linux says how much memory a process holds")


def held(mib: int) -> None:
    """Held in small pieces, which the C library keeps when they are freed."""
    pieces = [torch.ones(16 * 1024 // 4) for _ in range(mib * MIB // (16 * 1024))]
    del pieces


def measured(mib: int) -> float:
    with peak_memory(torch.device("cpu")) as peak:
        held(mib)
    assert peak.bytes is not None
    return peak.bytes / MIB


def test_what_was_held_for_a_moment_is_seen() -> None:
    held(200)
    assert 90 < measured(100) < 150
    assert measured(0) < 10
