"""The service's settings, read once: options, before the environment (`WISE_PORT=9000`), before a TOML file.

`Settings` is frozen. It is handed as it is to each part that needs a setting, and to the editor's process.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from wise.config import MODES, PROMISES, WiseConfig
from wise.errors import ConfigError, did_you_mean
from wise.loading import DEVICE_MAPS, DTYPES, QUANTIZATIONS, Placement
from wise.safe_text import redacted
from wise.serving.logs import LEVELS


def default_store() -> str:
    """A folder of the user's own data."""
    return str(Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "wise" / "store")


def _split_list(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _one_of(names: Iterable[str]) -> str:
    """The pattern of a setting."""
    return f"^({'|'.join(names)})$"


def _object(value: Any) -> Any:
    """The content of a JSON text; another value unchanged, so that its field refuses it by name."""
    with suppress(ValueError, TypeError):
        return json.loads(value)
    return value


class Settings(BaseSettings):
    """Raises pydantic's ValidationError for a value out of range; `load` turns it into a ConfigError."""

    model_config = SettingsConfigDict(env_prefix="WISE_", frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    model: str | None = Field(None, description="Folder or hub id of a causal LM; default: the shipped demo model.")
    device: str | None = Field(None, description="Device that the model runs on, such as `cuda`; default: the CPU.")
    dtype: str | None = Field(None, description=f"Precision: {', '.join(DTYPES)}; default: as the folder says.")
    device_map: str | None = Field(None, description=f"Spreads the model: {', '.join(DEVICE_MAPS)}, or a JSON object.")
    quantization: str | None = Field(None, description=f"Quantizes the model when loaded: {', '.join(QUANTIZATIONS)}.")
    allow_precision: bool = Field(
        False,
        description="Serve a store whose edits were made on this base in another precision; each is asked again first.",
    )
    name: str | None = Field(None, description="Name of the model in requests; default: the last part of `model`.")
    store: str = Field(default_factory=default_store, description="Folder of the store, or a postgresql:// URL.")
    mode: str = Field(
        "hybrid", pattern=_one_of(MODES), description="Memory mode of a new store; ignored if the store exists."
    )
    layer: int | None = Field(
        None, ge=0, description="Index of the edited block, for a new store; default: 70% of the depth (`hybrid`)."
    )
    target_module: str | None = Field(
        None, description="Path of the edited module with {i} for the block, for a new store; default: it is found."
    )
    encoder: str | None = Field(None, description="Folder or hub id of the sentence encoder; default: the installed.")
    relations: Path | None = Field(None, description="File written by `wise train-router`; default: the shipped one.")
    require: str | None = Field(
        None,
        pattern=_one_of(PROMISES),
        description="What must hold for an edit to be served; default: as the store was made, at first `listed`.",
    )
    tokens: Path | None = Field(None, description="File of hashed tokens (`wise token`); default: one token per run.")
    audit: Path | None = Field(None, description="File to which every write is appended; default: the log.")
    log_level: str = Field(
        "info", pattern=_one_of(LEVELS), description=f"Least level that is logged: {', '.join(LEVELS)}."
    )
    open_metrics: bool = Field(False, description="Whether /metrics needs no token; otherwise it needs a reader's.")
    canaries: Path | None = Field(None, description="Prompts, one per line, at which no edit may be active.")
    canary_limit: float = Field(0.0, ge=0, le=1, description="Share of canary tokens above which the alarm is raised.")
    engine: Literal["local", "vllm"] = Field("local", description="What runs the model: this process, or vLLM.")
    vllm: Annotated[dict[str, Any], BeforeValidator(_object)] = Field(
        {}, description="Arguments of vLLM's engine, as a JSON object; only with `engine=vllm`."
    )
    threads: int = Field(1, ge=1, description="CPU threads for answering.")
    edit_threads: int = Field(1, ge=1, description="CPU threads for editing.")
    edit_workers: int | None = Field(None, ge=1, description="Processes that fit edits (`hybrid`), each with a model.")
    edit_niceness: int = Field(5, ge=0, le=19, description="Niceness of the editor's process; more favours answers.")
    edit_seconds: float = Field(
        300.0, gt=0, description="CPU seconds that training may take, of a batch and then of each of its edits."
    )
    edit_memory: float = Field(8.0, gt=0, description="GiB that training may take beside the model, on a CPU (Linux).")
    edit_characters: int = Field(16_384, ge=1, description="Characters of each text of an edit.")
    edit_tokens: int = Field(4_096, ge=1, description="Tokens of all texts of an edit, each wording with the target.")
    target_tokens: int = Field(256, ge=1, description="Tokens of an edit's target.")
    preview_seconds: float = Field(30.0, gt=0, description="CPU seconds that a preview may take.")
    preview_queue: int = Field(16, ge=0, description="Previews that may wait, half of them of one holder.")
    preview_limit: int = Field(32, ge=1, description="Texts that one preview asks.")
    namespaces: int = Field(1_000, ge=1, description="Namespaces that may hold edits.")
    edit_batch: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Edits that are trained together; default: 16, on a CPU in `hybrid` 4 for each of `edit_workers`.",
    )
    keep_versions: int = Field(100, ge=1, description="Versions that stay readable; up to twice as many are stored.")
    max_batch_size: int = Field(64, ge=1, description="Answers that are generated at the same time.")
    max_queue: int = Field(256, ge=0, description="Answers that may wait; further requests get a 429.")
    cache_tokens: int = Field(131_072, ge=1, description="Tokens that all answers together may hold in the cache.")
    prefill_tokens: int = Field(256, ge=1, description="Tokens of new prompts that one step reads besides decoding.")
    request_timeout: float = Field(60.0, gt=0, description="Seconds that a request may take.")
    max_connections: int = Field(1000, ge=1, description="Connections that may be open; fewer if the system says so.")
    address_connections: int = Field(
        500, ge=1, description="Connections of one address; behind a proxy, as many as `max_connections`."
    )
    client_timeout: float = Field(
        20.0, gt=0, description="Seconds that a client may take to send a request's head, its body, or to read on."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list)] = Field(
        (), description="Origins, with commas between them, whose pages may use the API from a browser; default: none."
    )
    body_limit: int = Field(1_048_576, ge=1024, description="Bytes of a request's body.")
    bodies_limit: int = Field(
        67_108_864, ge=1024, description="Bytes of the bodies of all requests under way; at least `body_limit` count."
    )
    prompt_limit: int = Field(64, ge=1, description="Prompts of one request.")
    answer_limit: int = Field(16, ge=1, description="Answers (`n`) to one prompt.")
    edit_limit: int = Field(256, ge=1, description="Edits of one request.")
    shutdown_timeout: float = Field(
        30.0, ge=0, description="Seconds after a SIGTERM until all has ended; answers have two less, at least one."
    )

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Without the password of a store's URL, for logs and tracebacks."""
        return [(name, redacted(value) if isinstance(value, str) else value) for name, value in super().__repr_args__()]

    def served_name(self) -> str:
        """The model's name in requests. Raises ConfigError if it has an `@`, which precedes a namespace."""
        name = self.name or (Path(self.model).name if self.model else "wise-demo")
        if "@" in name:
            raise ConfigError(f"setting name={name!r}: '@' goes before a namespace; give the model another name")
        return name

    def placement(self) -> Placement:
        """Where the model is loaded. Raises ConfigError as `Placement` does."""
        return Placement(
            device=self.device, dtype=self.dtype, device_map=self.device_map, quantization=self.quantization
        )

    def wise_config(self, stored: WiseConfig | None) -> WiseConfig:
        """The configuration of a store, or of a new one; `encoder` and `relations` may be elsewhere on this machine,
        and `require` may change.

        Raises ConfigError for `encoder` or `relations` in a mode that has none.
        """
        config = stored or WiseConfig(mode=self.mode, layer=self.layer, target_module=self.target_module)
        relations = None if self.relations is None else str(self.relations.resolve())
        local_fields: dict[str, Any] = {"encoder": self.encoder, "relations": relations, "require": self.require}
        local_values = {name: value for name, value in local_fields.items() if value is not None}
        for name in ("encoder", "relations"):
            if name in local_values and config.mode != "hybrid":
                raise ConfigError(
                    f"setting {name}={str(getattr(self, name))!r}: the store is of mode {config.mode!r}, which "
                    "compares no questions, so it would have no effect; leave it out"
                )
        return replace(config, **local_values)


def without_effect(settings: Settings, stored: WiseConfig | None) -> list[str]:
    """Warnings about settings for a new store that differ from those of the existing store, which apply."""
    if stored is None:
        return []
    new_store_fields = settings.model_fields_set & {"mode", "layer", "target_module"}
    return [
        f"setting {name}={getattr(settings, name)!r} has no effect: the store was made with {getattr(stored, name)!r}"
        for name in sorted(new_store_fields)
        if getattr(settings, name) != getattr(stored, name)
    ]


def load(file: Path | None, options: dict[str, Any]) -> Settings:
    """The settings of a run; options that are None were not given. Raises ConfigError for what is not valid."""
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"--config {file}: {error}; a TOML file of settings was expected") from error
    from_environment = {name for name in Settings.model_fields if f"WISE_{name.upper()}" in os.environ}
    values = {name: value for name, value in values.items() if name not in from_environment}
    values |= {name: value for name, value in options.items() if value is not None}
    for name in sorted(values.keys() - Settings.model_fields):
        raise ConfigError(f"setting {name!r} is not known; {did_you_mean(name, Settings.model_fields)}")
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "settings"
        raise ConfigError(redacted(f"setting {name}={first['input']!r}: {first['msg']}")) from None
