"""A model in a process that dies while it fits. A module of its own, since other processes import it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from chats import chat_model

import wise


def killed_while_it_fits(marker: Path) -> wise.WiseModel:
    """In the process that comes first, which dies in the second step of a batch."""
    if not marker.exists():
        step = torch.optim.Adam.step
        steps = []

        def last(self: torch.optim.Adam, *given: Any) -> Any:
            steps.append(1)
            if len(steps) == 2:
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, *given)

        torch.optim.Adam.step = last  # type: ignore[method-assign]
    return chat_model()
