"""The editors by name. To add one, add a row; an editor is imported when it is first used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from wise.errors import ConfigError, did_you_mean
from wise.lab.editors.base import Baseline
from wise.lab.editors.context import EditingContext

BASELINES: dict[str, str] = {
    "ft-l": "fine_tuning:FineTuningL",
    "ft-m": "fine_tuning:FineTuningM",
    "ft-ewc": "elastic:FineTuningEWC",
    "rome": "rome:Rome",
    "memit": "memit:Memit",
    "alphaedit": "alphaedit:AlphaEdit",
    "mend": "mend:Mend",
    "ke": "knowledge_editor:KnowledgeEditor",
    "kn": "neurons:KnowledgeNeurons",
    "grace": "grace:Grace",
    "memoir": "memoir:Memoir",
    "icl": "in_context:InContext",
}
"""Name -> module of this folder, and class."""


def baseline_class(name: str) -> type[Baseline[Any]]:
    """Raises ConfigError, naming the nearest, where there is none of this name."""
    if name not in BASELINES:
        raise ConfigError(f"editor {name!r} is not known; {did_you_mean(name, BASELINES)}")
    module, _, cls = BASELINES[name].partition(":")
    result: type[Baseline[Any]] = getattr(import_module(f"wise.lab.editors.{module}"), cls)
    return result


def make_baseline(name: str, context: EditingContext, settings: Mapping[str, Any]) -> Baseline[Any]:
    """An editor on a base, nothing edited yet. Raises ConfigError for a setting unknown or out of range."""
    chosen = baseline_class(name)
    return chosen(context, chosen.Config.of(settings))
