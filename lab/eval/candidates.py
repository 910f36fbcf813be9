"""The editors that can be compared on the same records.

To add one, add a row to `EDITORS`; one of the literature also goes into `wise.lab.editors.registry`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wise.config import WiseConfig
from wise.edits import Edit, Record
from wise.errors import ConfigError, did_you_mean
from wise.lab.editors.base import Baseline
from wise.lab.editors.context import EditingContext, Progress
from wise.lab.editors.registry import baseline_class, make_baseline, make_settings
from wise.lab.eval.prompting import EditedModel
from wise.memory.modules import evaluating
from wise.model import WiseModel, wrap
from wise.training.encoding import learn_encoder
from wise.training.report import EditReport


@dataclass(frozen=True, kw_only=True)
class EditorSpec:
    """One way of editing."""

    about: str
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


_SEARCH: Mapping[str, tuple[Any, ...]] = {
    "learning_rate": (0.005, 0.01, 0.02),
    "max_steps": (40, 70, 120),
}

EDITORS: dict[str, EditorSpec] = {
    "wise-merge": EditorSpec(
        about="WISE-Merge: all edits in one side memory, gated by its own activation",
        settings={"mode": "merge"},
        search=_SEARCH,
        kind="memory",
    ),
    "wise-retrieve": EditorSpec(
        about="WISE-Retrieve: one side memory per slot; the nearest edit key names the slot",
        settings={"mode": "retrieve"},
        search={**_SEARCH, "key_threshold": (0.6, 0.7, 0.8)},
        kind="memory",
    ),
    "wise-hybrid": EditorSpec(
        about="wise's own: a value for each token of an answer, found by the subject's name and by what is asked",
        settings={"mode": "hybrid"},
        search={"max_steps": (40, 70, 120)},
        kind="memory",
    ),
    "ft-l": EditorSpec(about="FT-L: one layer fine-tuned within a norm constraint", batch=1),
    "ft-m": EditorSpec(about="FT-M: one layer fine-tuned on the target's tokens", batch=1),
    "ft-ewc": EditorSpec(about="fine-tuning with elastic weight consolidation", batch=1),
    "rome": EditorSpec(about="ROME: a rank-one change of one layer, in closed form", batch=1),
    "memit": EditorSpec(about="MEMIT: ridge solves at several layers, all edits at once"),
    "alphaedit": EditorSpec(about="AlphaEdit: MEMIT's solve in the null space of what is to be kept", batch=100),
    "mend": EditorSpec(about="MEND: a hypernetwork that transforms fine-tuning gradients", batch=1),
    "ke": EditorSpec(about="KnowledgeEditor: a hypernetwork that reads the edit and gates its gradient", batch=1),
    "kn": EditorSpec(about="knowledge neurons: found by integrated gradients, their values rewritten", batch=1),
    "grace": EditorSpec(about="GRACE: a codebook of values within balls around edit keys", batch=1),
    "memoir": EditorSpec(about="MEMOIR: a sparse residual memory that prompts open by their masks", batch=1),
    "icl": EditorSpec(about="in-context editing: retrieved edits are put before the prompt"),
    "none": EditorSpec(about="the base, not edited: the control", kind="none"),
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


class OpenEditor(EditedModel, Protocol):
    """A model that an editor works on: a `WiseModel`, or a `Baseline`."""

    def prepare(self) -> None:
        """Does what is needed once per base, which the first edit would do otherwise."""
        ...

    def edit(self, edits: Sequence[Edit], *, progress: Any = None) -> EditReport: ...

    def validate(self, edits: Sequence[Edit]) -> None: ...

    def save_pretrained(self, folder: Path, /) -> None: ...

    def unwrap(self) -> PreTrainedModel: ...

    @property
    def memory_bytes(self) -> int: ...


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
        return make_settings(name, settings).to_dict()
    config = _wise_config(editor, settings)
    return config.to_dict() | ({} if config.relations is None else {"relations_sha256": _sha256(config.relations)})


def _sha256(file: str) -> str:
    """Which file it is: runs with another one are other runs, whatever it is called."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def open_editor(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: Mapping[str, Any],
    *,
    learning: Learning | None = None,
    saved: Path | None = None,
    chat: bool = False,
    progress: Progress | None = None,
) -> OpenEditor:
    """An editor on a base, with the edits that it saved in a folder, or with none.

    chat: of an editor of the literature, that its prompts are turns of a chat, and its answers end as there.

    Raises ConfigError for an unknown editor or setting.
    """
    editor = find_editor(name)
    if editor.kind != "baseline":
        if saved is not None:
            return WiseModel.from_pretrained(model, tokenizer, saved)
        return wrap(model, tokenizer, _wise_config(editor, settings))
    learning = learning or Learning()
    with evaluating(model):
        encoder = learn_encoder(model, tokenizer, WiseConfig())
    if chat:
        encoder = replace(encoder, terminator=encoder.chat_terminator)
    context = EditingContext(
        model=model,
        encoder=encoder,
        texts=learning.corpus,
        training=learning.training,
        cache=learning.cache,
        progress=progress,
    )
    baseline: Baseline[Any] = make_baseline(name, context, settings)
    if saved is not None:
        baseline.load(saved)
    return baseline


def _wise_config(editor: EditorSpec, settings: Mapping[str, Any]) -> WiseConfig:
    known = WiseConfig().to_dict()
    for name in settings:
        if name not in known:
            raise ConfigError(f"setting {name!r} is not known; {did_you_mean(name, known)}")
    return WiseConfig(**{**settings, **editor.settings})
