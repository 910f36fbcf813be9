"""Probes: questions with known answers about what follows from an edit and about what must not change.

An answer is right where the model stops by itself and the answer is one of a query's, both compared after
`normalised`: the answers of published sets are names, in whichever case and with or without an article, so this
is a little more forgiving than reliability. Token accuracy beside it is that of the query's best answer, of the first
few. Of probes of kind `unstructured`, whose answers are free text, only token accuracy is usable.

A probe with conditions counts only where the unedited base's answer to every one of them begins with a right one,
ended or not (after RippleEdits, Cohen et al. 2024, section 4.1): an edit cannot lead to what the model does not know
otherwise, and a base that was not taught to end an answer may well know it. Not RippleEdits' own figures: there an
answer counts where it is contained, every answer of a query must be, only edits that held are averaged, and all tests
are asked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from wise.lab.eval.prompting import Prompter, PromptOutcome, PromptRow, Selection, mean_over_records, share
from wise.probes import KINDS, OF_A_CASE, Probe, Query
from wise.training.verification import SPARE_TOKENS

MAX_PROBES = 4
"""Probes of one record and kind that are asked: the first ones. Kinds in `OF_A_CASE` are asked all."""
MAX_ANSWERS = 8
"""Answers of a query whose tokens are fed in: the first ones. Some have over a hundred, other spellings mostly."""
UNMOVED = frozenset({"locality.gold", "locality.distracting", "ripple.preservation", "ripple.relation_specificity"})
"""Kinds that are left out where another edit asks for the very same: their answer is meant to change."""
ALWAYS_ASKED = frozenset({"ood", "conflict", "single_hops"})
"""Kinds of which a probe is asked also if fitting used its question, or an edit changed its answer."""
LABEL = "answer:"
"""What some models begin the answer to a question with."""
ARTICLES = ("the ", "a ", "an ")
ENDS = ".,;:!?\"'`()[]{}“”‘’«»…-–— "
_BEFORE = re.compile(rf"[{re.escape(ENDS)}]*?(?=-\d|[^{re.escape(ENDS)}])")
"""What stands before an answer, up to the sign of a number."""


def normalised(text: str) -> str:
    """Case folded, white space single; a label before it, punctuation at both ends, and around a leading article, and
    that article taken off. The minus sign of a number stays.

    >>> normalised('Answer: The "United States".')
    'united states'
    >>> normalised('"-5".')
    '-5'
    """
    plain = " ".join(text.casefold().split())
    plain = plain.removeprefix(LABEL).lstrip() or plain
    bare = _BEFORE.sub("", plain.rstrip(ENDS), count=1) or plain
    for article in ARTICLES:
        if bare.startswith(article):
            return _BEFORE.sub("", bare.removeprefix(article), count=1)
    return bare


@dataclass(frozen=True, kw_only=True)
class _QueryIds:
    """A query as ids, and the answers that count as right."""

    ids: list[int]
    limit: int
    gold: list[list[int]]
    """The first answers without what ends them."""
    right: frozenset[str]


@dataclass
class _ChosenProbes:
    """The probes that are asked, and how many of each kind are not, by reason."""

    probes: list[tuple[str, Probe]] = field(default_factory=list)
    """With the id of their record."""
    queries: dict[Query, _QueryIds] = field(default_factory=dict)
    """Theirs, and their conditions."""
    kinds: set[str] = field(default_factory=set)
    too_long: Counter[str] = field(default_factory=Counter)
    excluded: Counter[str] = field(default_factory=Counter)


def measure_probes(
    prompter: Prompter, selection: Selection
) -> tuple[dict[str, dict[str, Any]], tuple[PromptOutcome, ...]]:
    """Asks the first `MAX_PROBES` probes of each record and kind. A probe is left out if fitting used its question, if
    its answer must not move and another edit changes it, or if it fits the context with none of its answers.

    Raises ConfigError where the model gives NaN.

    Returns kind -> `generated`, `teacher_forced`, `base_generated` (means over records of means over a record's probes,
    of kinds in `OF_A_CASE` over probes), `n` probes that counted, and how many did not: `conditions_failed`, `too_long`
    for the context, `excluded` since they ask for what fitting used or another edit changed; and the outcomes.
    """
    chosen = _choose(prompter, selection)
    conditions = list(dict.fromkeys(query for _, probe in chosen.probes for query in probe.conditions))
    _, answers = _generated(prompter, "conditions", conditions, chosen, base=True)
    recalled = {query: begins_with(answers[query], chosen.queries[query].right) for query in conditions}
    counted = [each for each in chosen.probes if all(recalled[query] for query in each[1].conditions)]
    queries = list(dict.fromkeys(query for _, probe in counted for query in probe.queries))
    forced = _teacher_forced(prompter, queries, chosen)
    before, _ = _generated(prompter, "probes", queries, chosen, base=True)
    after, answer = _generated(prompter, "probes", queries, chosen, base=False)
    outcomes = tuple(
        PromptOutcome(
            record=record,
            measure=probe.kind,
            prompt="\n".join(query.prompt for query in probe.queries),
            expected="\n".join(query.answers[0] for query in probe.queries),
            answer="\n".join(answer[query] for query in probe.queries),
            generated=_probe_score(probe, after),
            teacher_forced=_combined(probe, forced),
        )
        for record, probe in counted
    )
    base = [_probe_score(probe, before) for _, probe in counted]
    failed = Counter(probe.kind for _, probe in chosen.probes)
    failed.subtract(outcome.measure for outcome in outcomes)
    counts = {"conditions_failed": failed, "too_long": chosen.too_long, "excluded": chosen.excluded}
    figures = {
        kind: _figures(kind, outcomes, base) | {name: count[kind] for name, count in counts.items()}
        for kind in KINDS
        if kind in chosen.kinds
    }
    return figures, outcomes


def _choose(prompter: Prompter, selection: Selection) -> _ChosenProbes:
    chosen = _ChosenProbes()
    for tested in selection.tested:
        counts: Counter[str] = Counter()
        for probe in tested.probes:
            kind = probe.kind
            chosen.kinds.add(kind)
            if counts[kind] == MAX_PROBES and kind not in OF_A_CASE:
                continue
            if _is_excluded(probe, selection):
                chosen.excluded[kind] += 1
                continue
            queries = {query: _ids(prompter, query) for query in (*probe.queries, *probe.conditions)}
            fits = {query: prompt for query, prompt in queries.items() if prompt is not None}
            if len(fits) < len(queries):
                chosen.too_long[kind] += 1
                continue
            counts[kind] += 1
            chosen.probes.append((tested.record.edit.id, probe))
            chosen.queries |= fits
    return chosen


def _is_excluded(probe: Probe, selection: Selection) -> bool:
    if probe.kind in ALWAYS_ASKED:
        return False
    left_out = selection.edited if probe.kind in UNMOVED else selection.fitted
    return any(query.prompt in left_out for query in probe.queries)


def _ids(prompter: Prompter, query: Query) -> _QueryIds | None:
    """Answers that do not fit the context behind the prompt are left out; None where none does."""
    encoder = prompter.encoder
    ids = encoder.prompt(query.prompt)
    room = encoder.context - len(ids)
    gold = {answer: encoder.answer_ids(query.prompt, answer) for answer in query.answers}
    lengths = {answer: len(encoder.target(query.prompt, answer)) for answer in query.answers}
    fits = [answer for answer, answer_ids in gold.items() if answer_ids and lengths[answer] <= room]
    if not ids or not fits:
        return None
    return _QueryIds(
        ids=ids,
        limit=min(room, max(lengths[answer] for answer in fits) + SPARE_TOKENS),
        gold=[gold[answer] for answer in fits[:MAX_ANSWERS]],
        right=frozenset(normalised(answer) for answer in fits),
    )


def _generated(
    prompter: Prompter, name: str, queries: Sequence[Query], chosen: _ChosenProbes, *, base: bool
) -> tuple[dict[Query, bool], dict[Query, str]]:
    """Query -> whether the greedy answer is right; query -> that answer."""
    encoder = prompter.encoder
    prompts = [chosen.queries[query] for query in queries]
    answers = prompter.answers(name, [a.ids for a in prompts], [a.limit for a in prompts], base=base)
    right, texts = {}, {}
    for query, one, answer in zip(queries, prompts, answers, strict=True):
        texts[query] = encoder.answer(answer)
        right[query] = answer[-1] in encoder.stops and normalised(texts[query]) in one.right
    return right, texts


def begins_with(text: str, right: Iterable[str]) -> bool:
    """What is said begins with a right answer, as a whole word or number, and may go on."""
    plain = normalised(text)
    return any(re.match(rf"{re.escape(answer)}(?!\w|[.,]\d)", plain) for answer in right)


def _teacher_forced(prompter: Prompter, queries: Sequence[Query], chosen: _ChosenProbes) -> dict[Query, float]:
    """Query -> the largest share of right argmaxes among its answers."""
    rows = [
        (query, PromptRow(prompt=chosen.queries[query].ids, fed=gold))
        for query in queries
        for gold in chosen.queries[query].gold
    ]
    best = prompter.best("probes", [row for _, row in rows])
    shares: dict[Query, float] = {}
    for (query, row), tokens in zip(rows, best, strict=True):
        shares[query] = max(shares.get(query, 0.0), share(tokens, row.fed))
    return shares


def _probe_score(probe: Probe, right: dict[Query, bool]) -> float:
    needed = all if probe.need == "all" else any
    return float(needed(right[query] for query in probe.queries))


def _combined(probe: Probe, shares: dict[Query, float]) -> float:
    """The best query where any is enough, the mean where all are needed."""
    combine = fmean if probe.need == "all" else max
    return combine([shares[query] for query in probe.queries])


def _figures(kind: str, outcomes: Sequence[PromptOutcome], base: Sequence[float]) -> dict[str, Any]:
    of_kind = [
        (str(place) if kind in OF_A_CASE else outcome.record, outcome, before)
        for place, (outcome, before) in enumerate(zip(outcomes, base, strict=True))
        if outcome.measure == kind
    ]
    return {
        "generated": mean_over_records((unit, outcome.generated) for unit, outcome, _ in of_kind),
        "teacher_forced": mean_over_records((unit, outcome.teacher_forced) for unit, outcome, _ in of_kind),
        "base_generated": mean_over_records((unit, before) for unit, _, before in of_kind),
        "n": len(of_kind),
    }
