"""wise as a Ray Serve application: several replicas on one store, one of which trains.

    export RAY_USAGE_STATS_ENABLED=0
    serve run --app-dir deploy ray_serve:application replicas=2 store=postgresql://wise@db/wise tokens=/etc/wise/tokens

`replicas` is the number of them, `config` a TOML file, and each other argument a setting of `wise serve`. Ray's proxy
listens instead of wise, on 127.0.0.1:8000, so `host`, `port` and the limits of connections have no effect. A file of
Ray's own (`serve build`, `serve run FILE`) may set another address, resources, or autoscaling.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from wise.errors import ConfigError
from wise.serving.app import build_app, build_service
from wise.serving.logs import log_as_json
from wise.serving.settings import load


def application(arguments: dict[str, str]) -> Application:
    """Raises ConfigError for an unknown setting, a value out of range, or if there is no file of tokens."""
    options = dict(arguments)
    replicas, file = options.pop("replicas", "2"), options.pop("config", None)
    settings = load(file and Path(file), options)
    if settings.tokens is None:
        raise ConfigError("tokens: a file was expected, so that all replicas know the same; make one with `wise token`")
    if not replicas.isdecimal() or not int(replicas):
        raise ConfigError(f"replicas={replicas!r}: a number from 1 was expected")

    def build() -> FastAPI:
        log_as_json(settings.log_level, settings.audit)
        service = build_service(settings, None)
        service.start()
        return build_app(service)

    @serve.deployment(
        name="wise",
        num_replicas=int(replicas),
        max_ongoing_requests=settings.max_connections,
        graceful_shutdown_timeout_s=settings.shutdown_timeout,
        ray_actor_options={
            "num_cpus": settings.threads,
            "num_gpus": int(settings.device is not None and settings.device.startswith("cuda")),
        },
    )
    @serve.ingress(build)
    class Replica:
        async def check_health(self) -> None:
            """Raises if the process must be started anew."""
            if not self.app.state.service.engine.alive:  # type: ignore[attr-defined]  # `ingress` gives it
                raise RuntimeError("the engine has ended; see the log")

    return Replica.bind()  # type: ignore[attr-defined]
