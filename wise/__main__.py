"""`python -m wise` and the console script `wise`."""

from __future__ import annotations

from wise.cli.app import app


def main() -> None:
    """Runs the command line and exits with its code."""
    app(prog_name="wise")


if __name__ == "__main__":
    main()
