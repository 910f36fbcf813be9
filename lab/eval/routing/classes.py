"""The classes of prompts on which a router is measured: positives ask for an edit, negatives do not."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wise.edits import Edit, Record
from wise.errors import ConfigError
from wise.lab.eval.routing.material import Draft, Material, choose, gather
from wise.lab.eval.routing.negatives import negative_drafts
from wise.lab.eval.routing.positives import positive_drafts
from wise.lab.eval.routing.texts import shipped_passages, shipped_questions
from wise.training.encoding import Encoder

PER_CLASS = 400
MAX_TOKENS = 20_000


@dataclass(frozen=True, kw_only=True)
class RoutingPrompt:
    text: str
    record: str | None = None
    """Id of the edit that it asks for (positives: always) or that it was built from (negatives)."""
    cluster: str | None = None
    """Where no record tells: what it was cut from. Prompts of one record or cluster are not independent."""


@dataclass(frozen=True, kw_only=True)
class RoutingClass:
    name: str
    about: str
    """One or two sentences: how it is built, from what."""
    unit: str
    """"prompt": the score at the last token counts; "token": every token's does."""
    prompts: tuple[RoutingPrompt, ...]


@dataclass(frozen=True, kw_only=True)
class RoutingSet:
    positives: tuple[RoutingClass, ...]
    negatives: tuple[RoutingClass, ...]
    skipped: Mapping[str, str]
    """`positives.NAME` or `negatives.NAME`, for two sides may share a name -> why it could not be built."""


def build_routing_set(
    records: Sequence[Record],
    *,
    live: Sequence[Edit],
    pool: Sequence[Record],
    encoder: Encoder,
    text: Sequence[str] | None = None,
    questions: Sequence[str] | None = None,
    seed: int = 0,
    per_class: int = PER_CLASS,
    max_tokens: int = MAX_TOKENS,
) -> RoutingSet:
    """Builds every class that the data allows; the same one for the same arguments.

    A prompt that may ask for an edited fact is in no class of negatives: none that is a known wording of an edit, and
    none that names an edited subject where what it asks is not surely something else
    (`wise.lab.eval.routing.relations`).

    Args:
        records: the edited ones.
        live: all live edits, those of `records` and any others.
        pool: records that were not edited, for other subjects and other relations; may be empty.
        encoder: says what a prompt's tokens are, how many fit, and how a conversation is written.
        text: running texts; None for the shipped ones.
        questions: generic questions; None for the shipped ones.
        per_class: prompts of a class of unit "prompt" at most, spread evenly over the records.
        max_tokens: tokens of a class of unit "token" at most.

    Raises ConfigError where no positive or no negative prompt could be built.
    """
    material = gather(
        records,
        live=live,
        pool=pool,
        encoder=encoder,
        text=shipped_passages() if text is None else text,
        questions=shipped_questions() if questions is None else questions,
        seed=seed,
        per_class=per_class,
        max_tokens=max_tokens,
    )
    skipped: dict[str, str] = {}
    return RoutingSet(
        positives=_side("positives", positive_drafts(material), material, skipped),
        negatives=_side("negatives", negative_drafts(material), material, skipped),
        skipped=skipped,
    )


def _side(side: str, drafts: Sequence[Draft], material: Material, skipped: dict[str, str]) -> tuple[RoutingClass, ...]:
    """The classes that could be built; notes why the others could not."""
    built = [_class(draft, material) for draft in drafts]
    for draft, entry in zip(drafts, built, strict=True):
        if not entry.prompts:
            skipped[f"{side}.{draft.name}"] = draft.why_empty
    if not any(entry.prompts for entry in built):
        reasons = "; ".join(draft.why_empty for draft in drafts)
        raise ConfigError(f"no {side} could be built of {len(material.records)} records: {reasons}")
    return tuple(entry for entry in built if entry.prompts)


def _class(draft: Draft, material: Material) -> RoutingClass:
    # Where every token counts, the tokens were counted already.
    cap = material.per_class if draft.unit == "prompt" else sys.maxsize
    result = choose(draft, cap=cap, accept=material.fits)
    prompts = []
    for text, place in result:
        record = draft.sources[place][0]
        prompts.append(RoutingPrompt(text=text, record=record, cluster=str(place) if record is None else None))
    return RoutingClass(name=draft.name, about=draft.about, unit=draft.unit, prompts=tuple(prompts))
