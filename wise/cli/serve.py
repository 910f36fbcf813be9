"""`wise serve` serves a model over HTTP and edits it while it runs. `wise token` makes a token for it."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from wise.cli import options
from wise.cli.terminal import echo, show_json
from wise.errors import ConfigError

NEEDS = "pip install 'wise-runtime[serve]'"


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """Settings of the service that have an option of their own."""

    model: Annotated[str | None, Option(help="Folder or hub id of a causal LM.")] = None
    store: Annotated[str | None, Option(help="Folder of the store, or a postgresql:// URL.")] = None
    host: Annotated[str | None, Option(help="Address to listen on. Default: 127.0.0.1.")] = None
    port: Annotated[int | None, Option(help="Port to listen on. Default: 8000.")] = None
    name: Annotated[str | None, Option(help="Name of the model in requests.")] = None
    tokens: Annotated[Path | None, Option(help="File of hashed tokens; see `wise token`.")] = None
    engine: Annotated[str | None, Option(help="local (default) or vllm.")] = None
    relations: Annotated[Path | None, Option(help="File written by `wise train-router`.")] = None
    mode: Annotated[str | None, Option(help="Memory mode of a new store. Default: hybrid.")] = None


@options.with_options
def serve(
    config: Annotated[Path | None, Option(help="TOML file of settings.")] = None,
    *,
    named: ServiceOptions,
    placement: options.PlacementOptions,
    allow_precision: options.AllowPrecisionOption = False,
    setting: Annotated[list[str] | None, Option("--set", help="Any other setting, NAME=VALUE.")] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Serve a model, and edit it while it is served; without options, the demo model.

    Settings come from options, then the environment (WISE_PORT=9000), then the file. Without a file of tokens, a
    token for this run is made. It is shown on a terminal, given with --json, and else written to a private file: stdout
    may be a file that others read. The log goes to stderr, as JSON. Ends on SIGTERM or Ctrl-C, after the running
    answers.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import pydantic_settings  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"the service needs {error.name}, which is not installed: {NEEDS}") from error
    from wise.serving.logs import json_logs
    from wise.serving.settings import default_store, load

    values = options.settings(**asdict(named), **asdict(placement), allow_precision=allow_precision or None)
    settings = load(config, options.named_values(setting) | values)

    place = Path(default_store() if "://" in settings.store else settings.store).absolute()
    written: tuple[Path, str] | None = None

    def show(url: str, token: str | None) -> None:
        nonlocal written
        if as_json:
            show_json({"url": url, "token": token})
            return
        is_shown = token is not None and sys.stdout.isatty()
        echo(f"wise serves at {url}/v1; the console: {url}/console" + (f"#{token}" if is_shown else ""))
        if is_shown:
            echo(f"token of this run (admin): {token}")
        elif token:
            from wise.serving.auth import write_token  # what it imports may write to stderr

            private = place.with_name(f"{place.name}.{url.rpartition(':')[2]}.token")  # each of several has a port
            write_token(private, token)
            written = private, token
            echo(f"the token of this run (admin) is in the file {private}, which only you can read")

    with json_logs(settings.log_level, settings.audit):
        from wise.serving.app import run  # what is imported may write to stderr too

        try:
            run(settings, show)
        finally:
            with suppress(FileNotFoundError):
                # A service that began later, on another address, may have put its own token there.
                if written is not None and written[0].read_text(encoding="utf-8").strip() == written[1]:
                    written[0].unlink()


def token(
    name: Annotated[str, Argument(help="Holder of the token; the journal and the audit name it.")],
    file: Annotated[Path, Option(help="File of hashed tokens, to which it is appended.")],
    scope: Annotated[str, Option(help="reader, editor or admin.")] = "reader",
    days: Annotated[int | None, Option(min=1, max=36_500, help="Days until it expires. Default: never.")] = None,
    namespace: Annotated[
        list[str] | None, Option(help="Namespace that it sees and edits alone. Repeat for more. Default: all.")
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Make a token for the service, and append its hash to a file. The token is shown once and stored nowhere."""
    from wise.serving.auth import add_token_line, new_token, token_line

    made = new_token()
    until = None if days is None else datetime.now(UTC) + timedelta(days=days)
    add_token_line(file, token_line(name, scope, made, until, namespace or ()))
    ends = until and until.isoformat(timespec="seconds")
    limits = (f", until {ends}" if ends else "") + (f", of {', '.join(namespace)}" if namespace else "")
    echo(f"{name} ({scope}{limits}): {made}")
    if as_json:
        shown = {"name": name, "scope": scope, "token": made, "file": str(file), "until": ends}
        show_json(shown | {"namespaces": namespace})
