"""`python -m wise` and the console script `wise`."""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130
"""Exit code after Ctrl-C, as of any command that a signal ended."""


def main() -> None:
    """Runs the command line and exits with its code."""
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))  # nothing has begun while it is imported
    from wise.cli.app import app

    signal.signal(signal.SIGINT, before)
    app(prog_name="wise")


if __name__ == "__main__":
    main()
