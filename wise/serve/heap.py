"""The memory of this process, given back to the system.

A version that is served takes a few large blocks, which are freed when the last request under it ends. The C library
keeps such blocks for itself, and what is asked for next seldom fits into them: under load a service came to hold twice
what its versions need.
"""

from __future__ import annotations

import ctypes
import os


def trim() -> None:
    """Gives back what is free, in a few milliseconds; does nothing where the C library is not GNU's."""
    if os.name == "posix":
        give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if give_back is not None:
            give_back(0)
