"""Ends a worker of vLLM when its front end has ended, however it ended: it would stay behind with all its memory."""

from __future__ import annotations

import os
import select
import socket
import threading

Process = tuple[str, int]
"""A machine's name, and the id of a process there."""


def this_process() -> Process:
    return socket.gethostname(), os.getpid()


def end_with(other: Process) -> None:
    """Ends this process as soon as another one on this machine has ended (Linux); one elsewhere is not watched."""
    host, pid = other
    if host != socket.gethostname() or pid == os.getpid() or not hasattr(os, "pidfd_open"):
        return
    poll = select.poll()
    poll.register(os.pidfd_open(pid), select.POLLIN)

    def wait() -> None:
        poll.poll()
        os._exit(1)

    threading.Thread(target=wait, name="wise-front-end", daemon=True).start()
