"""The peak memory of a block of code, above what was allocated when it began."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")
PEAK = "5"
"""What `clear_refs` takes to forget the peak so far."""


class Peak:
    """Set when the `with` block of `peak_memory` ends."""

    bytes: int | None = None
    """None where the system does not say."""


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measures a `with` block: memory of a CUDA device, or else of the whole process as Linux counts it.

    What other threads of the process allocate counts too. Memory that the process had freed but kept is given back
    first, where the C library can (glibc), or it would be used again unseen.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    begun = _begun()
    yield peak
    if begun is not None:
        peak.bytes = max(0, _kib("VmHWM") - begun) * 1024


def _begun() -> int | None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        pass
    try:
        RESET.write_text(PEAK)
        return _kib("VmRSS")
    except OSError:  # no Linux, or one that does not let us
        return None


def _kib(name: str) -> int:
    result = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    if result is None:
        raise OSError(f"{STATUS} has no {name}")
    return int(result.group(1))
