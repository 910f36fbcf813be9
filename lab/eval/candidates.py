"""The editors that can be compared on the same records.

To add one of the literature, add a row to `wise.lab.editors.registry`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wise.config import WiseConfig
from wise.edits import Record
from wise.errors import ConfigError, did_you_mean
from wise.lab.editors.context import EditingContext
from wise.lab.editors.registry import BASELINES, baseline_class, make_baseline
from wise.lab.eval.prompting import EditedModel, turn_text
from wise.lab.eval.routing.texts import shipped_questions
from wise.memory.modules import evaluating
from wise.model import wrap
from wise.progress import Progress, silent
from wise.router.chat_template import ChatTemplate, user_turn
from wise.training.encoding import learn_encoder


@dataclass(frozen=True, kw_only=True)
class EditorSpec:
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `WiseConfig` that make it what it is; of others, nothing."""
    search: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Of a side memory: setting -> values that a search may try. Others say so themselves."""
    batch: int | None = None
    """Edits per call, as its paper applies them; None makes one call of all."""
    kind: str = "baseline"
    """memory: a side memory; baseline: an editor of the literature; none: not edited, the control."""

    @property
    def edits(self) -> bool:
        return self.kind != "none"


_SEARCH: Mapping[str, tuple[Any, ...]] = {"learning_rate": (0.005, 0.01, 0.02), "max_steps": (40, 70, 120)}

BATCHES: Mapping[str, int | None] = {"memit": None, "alphaedit": 100, "icl": None}
"""Edits per call of the editors of the literature that take more than one."""

EDITORS: dict[str, EditorSpec] = {
    "wise-merge": EditorSpec(kind="memory", settings={"mode": "merge"}, search=_SEARCH),
    "wise-retrieve": EditorSpec(
        kind="memory", settings={"mode": "retrieve"}, search={**_SEARCH, "key_threshold": (0.6, 0.7, 0.8)}
    ),
    "wise-hybrid": EditorSpec(kind="memory", settings={"mode": "hybrid"}, search={"max_steps": (40, 70, 120)}),
    **{name: EditorSpec(batch=BATCHES.get(name, 1)) for name in BASELINES},
    "none": EditorSpec(kind="none"),
}


def find_editor(name: str) -> EditorSpec:
    """Raises ConfigError, naming the nearest, where there is none of this name."""
    if name not in EDITORS:
        raise ConfigError(f"editor {name!r} is not known; {did_you_mean(name, EDITORS)}")
    return EDITORS[name]


def search_space(name: str) -> Mapping[str, tuple[Any, ...]]:
    """Setting -> the values that a search over an editor's hyper-parameters draws from."""
    editor = find_editor(name)
    return baseline_class(name).Config.search if editor.kind == "baseline" else editor.search


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What editors of the literature may learn from, beside the edits."""

    corpus: tuple[str, ...] | None = None
    """Texts for statistics; None lets the base speak for itself."""
    training: tuple[Record, ...] = ()
    """Records that are not edited, for editors that are trained themselves."""
    cache: Path | None = None
    """Folder in which what takes long to compute is kept."""


def all_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of an editor, those that are given and the others, ready for JSON.

    Raises ConfigError for an unknown editor or setting, or a value out of range.
    """
    editor = find_editor(name)
    if editor.kind == "baseline":
        return baseline_class(name).Config.of(settings).to_dict()
    return _wise_config(editor, settings).to_dict()


def open_editor(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: Mapping[str, Any],
    *,
    learning: Learning | None = None,
    chat: bool = False,
    progress: Progress = silent,
) -> EditedModel:
    """An editor on a base, nothing edited yet. chat: prompts of an editor of the literature are turns of a chat, and
    its answers end as there. Raises ConfigError for an unknown editor or setting, or a chat without a template."""
    editor = find_editor(name)
    if chat and ChatTemplate.learn(tokenizer) is None:
        raise ConfigError("this base has no chat template that can be used: ask plain texts (--form completion)")
    if editor.kind != "baseline":
        return wrap(model, tokenizer, _wise_config(editor, settings))
    learning = learning or Learning()
    with evaluating(model):
        encoder = learn_encoder(model, tokenizer, WiseConfig())
    turns: list[str] = []
    if chat:
        encoder = replace(encoder, terminator=encoder.chat_terminator)
        turns = [turn_text(encoder, [user_turn(question)]) for question in shipped_questions()]
    context = EditingContext(
        model=model,
        encoder=encoder,
        texts=learning.corpus,
        training=learning.training,
        unrelated=tuple(turns),
        cache=learning.cache,
        progress=progress,
    )
    return make_baseline(name, context, settings)


def _wise_config(editor: EditorSpec, settings: Mapping[str, Any]) -> WiseConfig:
    names = WiseConfig().to_dict()
    for name in settings:
        if name not in names:
            raise ConfigError(f"setting {name!r} is not known; {did_you_mean(name, names)}")
    return WiseConfig(**{**settings, **editor.settings})
