"""`python -m wise` and the console script `wise`."""

from __future__ import annotations

import io
import os
import signal
import sys

INTERRUPTED = 130
"""Exit code after Ctrl-C, as of any command that a signal ended."""


def main() -> None:
    """Runs the command line and exits with its code."""
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))  # nothing has begun while it is imported
    _prepare_streams()
    from wise.cli.app import app

    signal.signal(signal.SIGINT, before)
    app(prog_name="wise")


def _prepare_streams() -> None:
    """A stream that the caller closed becomes one into which all goes and from which nothing comes: else the next file
    that is opened would take its number. Characters that the encoding of stdout lacks are escaped, as on stderr."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
