"""The `wise` command: its sub-commands, its exit codes, and how errors are said."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer import Option
from typer.core import TyperGroup

import wise
from wise.cli.ask import ask
from wise.cli.bench import app as bench
from wise.cli.chat_demo import chat_demo
from wise.cli.common import BAD_INPUT, UNEXPECTED
from wise.cli.compare import compare
from wise.cli.demo import demo
from wise.cli.edit import edit
from wise.cli.eval import eval_
from wise.cli.eval_chat import eval_chat
from wise.cli.forget import forget
from wise.cli.harness import harness
from wise.cli.info import info
from wise.cli.locate import locate
from wise.cli.serve import serve, token
from wise.cli.store import app as store
from wise.cli.stream import stream
from wise.cli.terminal import LineFormatter, echo
from wise.cli.train_router import train_router
from wise.errors import StartError, WiseError
from wise.safe_text import redacted

EXIT_CODES = (
    "Exit codes: 0 all is well; 1 something unexpected went wrong; 2 the usage or the input is wrong; "
    "3 'wise edit', 'wise forget' or 'wise store delete' saved a memory, but not every edit verified; "
    "4 'wise store check' found a store that is not whole; 130 stopped by Ctrl-C."
)

USERS_FILES = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Of all that an operating system may say, what comes from a path that the user gave."""
USERS_ERRORS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""By number, what else comes from a path, or from a disk that takes nothing more."""


class _Group(TyperGroup):
    """Says an error that is the user's to mend in one line, without a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "" in args:  # as a path it would be the folder in which the command runs
            place = args.index("")
            behind = f" behind {args[place - 1]}" if place else ""
            ctx.fail(f"An empty argument was given{behind}: is a variable of the shell not set?")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (WiseError, OSError) as error:
            if not isinstance(error, (WiseError, *USERS_FILES)) and error.errno not in USERS_ERRORS:
                raise
            echo(f"wise: {redacted(' '.join(str(error).split()))}", err=True)
            raise typer.Exit(UNEXPECTED if isinstance(error, StartError) else BAD_INPUT) from None


app = typer.Typer(
    name="wise",
    cls=_Group,
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(is_set: bool) -> None:
    if is_set:
        echo(f"wise {wise.__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    version: Annotated[bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Lifelong editing of Hugging Face language models.

    Results go to stdout, progress and warnings to stderr.
    With --json the last line of stdout is one JSON object.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("%(levelname)s: %(message)s"))
    handler.setLevel(logging.WARNING)
    logger = logging.getLogger("wise")
    logger.addHandler(handler)
    context.call_on_close(lambda: logger.removeHandler(handler))


COMMANDS: tuple[Callable[..., None], ...] = (
    edit, forget, ask, eval_, eval_chat, compare, locate, train_router, harness, serve, token, stream, info, demo,
    chat_demo,
)
for command in COMMANDS:
    app.command(command.__name__.strip("_").replace("_", "-"))(command)
app.add_typer(bench, name="bench")
app.add_typer(store, name="store")
