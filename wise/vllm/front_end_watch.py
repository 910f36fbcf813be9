"""Ends a worker of vLLM when its front end has ended in any way: else the worker would stay, with all its memory."""

from __future__ import annotations

import os
import select
import socket
import threading

Process = tuple[str, int]
"""A machine's name, and the id of a process there."""


def this_process() -> Process:
    return socket.gethostname(), os.getpid()


def end_with(process: Process) -> None:
    """Ends this process as soon as another process on this machine has ended (Linux). A process on another machine is
    not watched."""
    host, pid = process
    if host != socket.gethostname() or pid == os.getpid() or not hasattr(os, "pidfd_open"):
        return
    watcher = select.poll()
    watcher.register(os.pidfd_open(pid), select.POLLIN)

    def wait() -> None:
        watcher.poll()
        os._exit(1)

    threading.Thread(target=wait, name="wise-front-end", daemon=True).start()
