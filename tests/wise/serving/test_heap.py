"""Freed memory returns to the system, and only by `trim_heap`."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
import pytest

from wise.serving.follower import trim_heap

BLOCK, BLOCKS = 2**16, 2000
"""Bytes of a block that the C library takes from its heap, and not directly from the system."""


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="the C library is not GNU's",
)
def test_what_is_freed_is_given_back() -> None:
    trim_heap()
    before = resident()
    blocks = [np.ones(BLOCK, dtype=np.uint8) for _ in range(BLOCKS)]
    last_block = blocks[-1]  # above all others, so that the heap cannot shrink
    blocks.clear()
    assert resident() - before > BLOCK * BLOCKS // 2
    trim_heap()
    assert resident() - before < BLOCK * BLOCKS // 10
    assert last_block.all()
