"""The classes of prompts on which a router is measured: positives ask for an edit, negatives do not."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from wise.edits import Edit, Record
from wise.errors import ConfigError
from wise.lab.eval.routing.material import Conversation, Draft, Material, choose
from wise.lab.eval.routing.negatives import negative_drafts
from wise.lab.eval.routing.positives import positive_drafts
from wise.lab.eval.routing.relations import EditedFacts, Relations
from wise.lab.eval.routing.texts import shipped_exchanges, shipped_passages, shipped_questions
from wise.training.encoding import Encoder

PER_CLASS = 400
MAX_TOKENS = 20_000
LEAST_WORDS = 5_000
"""Words of running text that are looked through even where few tokens of it are measured."""


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

    records: the edited ones. live: all live edits. pool: records that were not edited, for other subjects and
    relations. text, questions: running texts and generic questions; None for the shipped ones. per_class: prompts of a
    class of unit "prompt" at most, spread evenly over the records. max_tokens: tokens of one of unit "token" at most.

    Raises ConfigError where no positive or no negative prompt could be built.
    """
    relations = Relations((*records, *pool), live)
    edited = EditedFacts(records, live, relations)
    rng = random.Random(f"{seed} material")
    passages = _shuffled(shipped_passages() if text is None else text, rng)
    generic = _shuffled(shipped_questions() if questions is None else questions, rng)
    ids = {record.edit.id for record in records} | {edit.id for edit in live}
    id_of_prompt = {edit.prompt: edit.id for edit in live}  # of a prompt that was edited again, the last edit
    material = Material(
        records=tuple(record for record in records if id_of_prompt.get(record.edit.prompt) == record.edit.id),
        pool=tuple(record for record in pool if record.edit.id not in ids),
        live=tuple(live),
        encoder=encoder,
        relations=relations,
        edited=edited,
        conversation=Conversation(encoder),
        texts=tuple(_enough((t for t in passages if _unrelated(t, edited)), max(max_tokens, LEAST_WORDS))),
        questions=tuple(islice((q for q in generic if _unrelated(q, edited)), per_class)),
        exchanges=tuple((q, a) for q, a in shipped_exchanges() if _unrelated(f"{q} {a}", edited)),
        seed=seed,
        per_class=per_class,
        max_tokens=max_tokens,
        fitted=frozenset(edit.prompt.replace(edit.subject, "{}") for edit in live if edit.subject),
    )
    skipped: dict[str, str] = {}
    return RoutingSet(
        positives=_side("positives", positive_drafts(material), material, skipped),
        negatives=_side("negatives", negative_drafts(material), material, skipped),
        skipped=skipped,
    )


def _unrelated(text: str, edited: EditedFacts) -> bool:
    return not edited.names(text) and not edited.states(text)


def _shuffled(texts: Sequence[str], rng: random.Random) -> list[str]:
    results = [text for text in dict.fromkeys(texts) if text.strip()]
    rng.shuffle(results)
    return results


def _enough(texts: Iterable[str], count: int) -> Iterator[str]:
    """Texts of together at least `count` words, each of which is at least about one token."""
    total = 0
    for text in texts:
        if total >= count:
            return
        total += len(text.split())
        yield text


def _side(side: str, drafts: Sequence[Draft], material: Material, skipped: dict[str, str]) -> tuple[RoutingClass, ...]:
    built = []
    for draft in drafts:
        # Where every token counts, the tokens were counted already.
        cap = material.per_class if draft.unit == "prompt" else sys.maxsize
        prompts = []
        for text, place in choose(draft, cap=cap, accept=material.fits):
            record = draft.sources[place][0]
            prompts.append(RoutingPrompt(text=text, record=record, cluster=str(place) if record is None else None))
        if prompts:
            built.append(RoutingClass(name=draft.name, about=draft.about, unit=draft.unit, prompts=tuple(prompts)))
        else:
            skipped[f"{side}.{draft.name}"] = draft.why_empty
    if not built:
        reasons = "; ".join(draft.why_empty for draft in drafts)
        raise ConfigError(f"no {side} could be built of {len(material.records)} records: {reasons}")
    return tuple(built)
