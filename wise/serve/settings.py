"""The service's settings: flags, before the environment (`WISE_PORT=9000`), before a TOML file, before what is here."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from wise.config import MODES
from wise.errors import ConfigError


def default_store() -> str:
    """A folder of the user's own data."""
    return str(Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "wise" / "store")


class Settings(BaseSettings):
    """Raises pydantic's ValidationError for a value out of range; `load` makes it a ConfigError."""

    model_config = SettingsConfigDict(env_prefix="WISE_", frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    model: str | None = Field(None, description="Folder or hub id of a causal LM; the shipped demo model if left out.")
    name: str | None = Field(None, description="What requests call the model; the last part of `model` if left out.")
    store: str = Field(default_factory=default_store, description="Folder of the store, or a postgresql:// URL.")
    mode: str = Field("hybrid", pattern="|".join(MODES), description="Of a new store; an old one brings its own.")
    encoder: str | None = Field(None, description="Sentence encoder: folder or hub id; the installed one if left out.")
    relations: Path | None = Field(None, description="File that `wise train-router` wrote; what ships if left out.")
    tokens: Path | None = Field(None, description="File of hashed tokens (`wise token`); one for this run if left out.")
    audit: Path | None = Field(None, description="File to which every write is appended; the log if left out.")
    open_metrics: bool = Field(False, description="Whether /metrics asks for no token; otherwise for a reader's.")
    canaries: Path | None = Field(None, description="Prompts, one a line, at which no edit may speak.")
    canary_limit: float = Field(0.0, ge=0, le=1, description="Share of canary tokens from which the alarm is raised.")
    threads: int = Field(1, ge=1, description="CPU threads that answering takes.")
    edit_threads: int = Field(1, ge=1, description="CPU threads that editing takes.")
    edit_niceness: int = Field(10, ge=0, le=19, description="By how much editing gives way to answering.")
    edit_batch: int = Field(16, ge=1, le=64, description="Edits that are trained together.")
    keep: int = Field(100, ge=1, description="Versions that stay readable; up to twice as many are there.")
    rows: int = Field(64, ge=1, description="Answers that share a step.")
    waiting: int = Field(256, ge=0, description="Answers that may wait; beyond, requests get a 429.")
    cache_tokens: int = Field(131_072, ge=1, description="Tokens that all answers together may hold in the cache.")
    prefill_tokens: int = Field(256, ge=1, description="Tokens of new prompts that a step reads beside its answers.")
    deadline: float = Field(60.0, gt=0, description="Seconds that a request may take.")
    body_limit: int = Field(1_048_576, ge=1024, description="Bytes of a request's body.")
    prompt_limit: int = Field(64, ge=1, description="Prompts of one request.")
    answer_limit: int = Field(16, ge=1, description="Answers (`n`) to one prompt.")
    edit_limit: int = Field(256, ge=1, description="Edits of one request.")
    drain: float = Field(30.0, ge=0, description="Seconds that answers under way have when the service is to end.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings


def load(file: Path | None, flags: dict[str, Any]) -> Settings:
    """The settings of a run; flags that are None were not given.

    Raises ConfigError for a setting that is not known or out of range, or a file that is none.
    """
    told: dict[str, Any] = {}
    if file is not None:
        try:
            told = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"--config {file}: {error}; a TOML file of settings was expected") from error
    named = {f"WISE_{name.upper()}" for name in Settings.model_fields}
    told = {name: value for name, value in told.items() if f"WISE_{name.upper()}" not in named & set(os.environ)}
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**{**told, **given})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "settings"
        raise ConfigError(f"setting {name}={first['input']!r}: {first['msg']}") from error
