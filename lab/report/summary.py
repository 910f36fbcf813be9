"""A run in plain words: what holds, and what is lost, in sentences made from its figures and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from wise.lab.report.formats import percent, plain, points, short

STAYING = ("locality.", "ripple.preservation", "ripple.relation_specificity")
"""Probes of what must stay as it was."""
APART = ("single_hops", "unstructured")
"""Probes of what does not follow from an edit, or that no exact answer is expected of."""
FORMS = {"reliability": "the edits", "generalization": "paraphrases", "free_generalization": "freer wordings"}


def look(run: Mapping[str, Any], *path: str) -> Any:
    """What stands at a path of keys; None where any of them is missing or null.

    >>> look({"a": {"b": 1}}, "a", "b"), look({"a": None}, "a", "b")
    (1, None)
    """
    found: Any = run
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def holds(run: Mapping[str, Any]) -> list[str]:
    """Sentences on what the edits reached."""
    return [sentence for part in (_recall, _beside, _silence, _oldest, _drift) for sentence in part(run)]


def lost(run: Mapping[str, Any]) -> list[str]:
    """Sentences on what they cost, or did not reach."""
    found = [
        sentence for part in (_failed, _missing, _ceiling, _forms, _false, _hardest, _probes) for sentence in part(run)
    ]
    return found or ["None of the figures measured here shows a loss."]


def _recall(run: Mapping[str, Any]) -> Iterator[str]:
    parts = [
        f"{percent(share)} of {name}"
        for key, name in FORMS.items()
        if (share := look(run, "generated", key)) is not None
    ]
    if parts:
        yield f"The model generates the new answer for {_listed(parts)}."


def _beside(run: Mapping[str, Any]) -> Iterator[str]:
    share = look(run, "generated", "locality")
    if share is not None:
        yield f"It answers {percent(share)} of neighbouring prompts word for word as before."


def _silence(run: Mapping[str, Any]) -> Iterator[str]:
    if look(run, "routing", "false_routes_per_million") == 0:
        tokens = look(run, "routing", "running_text_tokens")
        high = look(run, "routing", "false_routes_per_million_ci")
        most = f"; up to {short(high[1])} per million could have gone unseen" if high else ""
        yield f"In {tokens:,} tokens of running text the gate never opened{most}."


def _oldest(run: Mapping[str, Any]) -> Iterator[str]:
    stops = run.get("retention") or []
    if len(stops) > 1 and stops[-1].get("oldest") is not None:
        last = stops[-1]
        yield f"After {last['edits']:,} edits the oldest tenth is still recalled at {percent(last['oldest'])}."


def _drift(run: Mapping[str, Any]) -> Iterator[str]:
    ratio = look(run, "perplexity", "ratio")
    if ratio is not None:
        times = "" if f"{ratio:.4g}" == "1" else f"{ratio:.4g} times "
        yield f"Perplexity of running text is {times}that of the base."


def _failed(run: Mapping[str, Any]) -> Iterator[str]:
    if run.get("failed_edits"):
        verb = "was" if run["failed_edits"] == 1 else "were"
        yield f"{run['failed_edits']:,} of {run['edits']:,} edits {verb} not taken, or lost again later."


def _missing(run: Mapping[str, Any]) -> Iterator[str]:
    measures = {**FORMS, "locality": "neighbouring prompts"}
    parts = []
    for key, name in measures.items():
        share = look(run, "generated", key)
        if share is not None and share < 1:
            parts.append(f"{percent(1 - share)} of {name}")
    if parts:
        yield f"Another answer than the wanted one came for {_listed(parts)}."
    forced, generated = (look(run, kind, "reliability") for kind in ("teacher_forced", "generated"))
    if None not in (forced, generated) and forced > generated:
        gap = points(forced - generated)
        yield f"Teacher-forced reliability is {gap} higher than what the model really generates."


def _ceiling(run: Mapping[str, Any]) -> Iterator[str]:
    ceiling, reached = look(run, "routing", "oracle", "generalization"), look(run, "generated", "generalization")
    if None in (ceiling, reached) or reached == 1:
        return
    gap = ceiling - reached
    says = f"the router costs {points(gap)}" if gap > 0 else "the router costs nothing there"
    rest = f", and the other {points(1 - ceiling)} the memory itself does not hold" if ceiling < 1 else ""
    yield f"With perfect routing {percent(ceiling)} of paraphrases would be right: {says}{rest}."


def _forms(run: Mapping[str, Any]) -> Iterator[str]:
    positives = look(run, "routing", "positives") or {}
    opened = {name: form["opened"] for name, form in positives.items() if form.get("opened") is not None}
    if opened:
        name = min(opened, key=lambda n: opened[n])
        if opened[name] < 1:
            share = percent(opened[name])
            yield f"Of the forms that edits are asked in, {plain(name)} fares worst: the gate opens for {share} of it."


def _false(run: Mapping[str, Any]) -> Iterator[str]:
    rate = look(run, "routing", "false_routes_per_million")
    if rate:
        yield f"In running text the gate wrongly opens {short(rate)} times per million tokens."


def _hardest(run: Mapping[str, Any]) -> Iterator[str]:
    classes = look(run, "routing", "classes") or {}
    known = {name: c for name, c in classes.items() if None not in (c.get("auroc"), c.get("opened"))}
    if known:
        name = min(known, key=lambda n: known[n]["auroc"])
        worst = known[name]
        opened = percent(worst["opened"]) if worst["opened"] else "none"
        yield (
            f"The unrelated text that is hardest to tell apart is {plain(name)}: AUROC {worst['auroc']:.3f}, "
            f"and {opened} of it opens the gate."
        )


def _probes(run: Mapping[str, Any]) -> Iterator[str]:
    probes = run.get("probes") or {}
    follows = {k: p for k, p in probes.items() if k not in APART and not k.startswith(STAYING)}
    measured = {k: p for k, p in follows.items() if p.get("generated") is not None}
    if measured:
        kind = min(measured, key=lambda k: measured[k]["generated"])
        share, base = measured[kind]["generated"], measured[kind].get("base_generated")
        beside = "" if base is None else f"; the unedited base has {percent(base)}"
        yield f"Of what should follow from the edits, {plain(kind)} fares worst: {percent(share)} right{beside}."


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
