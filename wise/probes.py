"""Questions with known answers that measure what an edit leads to, beyond its own prompt and wordings of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wise.errors import EditError, check_fields, checked_list, checked_text, did_you_mean, given, parsed_list

NEEDS = ("any", "all")
KINDS = (
    "locality.gold",  # must not move, and the right answer is known: accuracy, not "unchanged from the base"
    "locality.distracting",  # asks the edited question with the new answer named and ruled out
    "portability.reasoning",
    "portability.subject_aliasing",
    "portability.logical_generalization",
    "ripple.logical_generalization",  # the six criteria of RippleEdits
    "ripple.compositionality_1",
    "ripple.compositionality_2",
    "ripple.subject_aliasing",
    "ripple.preservation",
    "ripple.relation_specificity",
    "multi_hop",  # MQuAKE: any of the wordings of one question of several hops
    "single_hops",  # MQuAKE: all single facts that the question goes through, edited and unedited
    "ood",  # the same prompt, with text of another origin as its answer (the temporal set used with WISE)
    "unstructured",  # questions on the parts of a long target (UnKE): free text, so only teacher_forced is usable
    "conflict",  # what must follow from two edits that bear on each other
)
ASKS_THE_EDIT = ("locality.distracting", "ood", "single_hops", "unstructured", "conflict")
"""Kinds that may ask the edit's own prompt: they want another text there, ask it again after another edit, or ask it
as one of several facts that are needed together."""
OF_A_CASE = ("multi_hop", "single_hops")
"""Kinds of which every probe is a case of its set and counts as much as any other, also where two share a record."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """One question; any of its answers is right. Raises EditError for unusable text, or no answer."""

    prompt: str
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", checked_text("prompt", self.prompt).rstrip(" "))
        if not isinstance(self.answers, list | tuple) or not self.answers:
            raise EditError(f"field 'answers': {given(self.answers)} was given, at least one answer was expected")
        answers = [checked_text(f"answers[{i}]", text).strip() for i, text in enumerate(self.answers)]
        object.__setattr__(self, "answers", tuple(dict.fromkeys(answers)))

    def to_dict(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "answers": list(self.answers)}

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Query:
        """Raises EditError: no mapping, an unknown or missing field, or what `Query` itself refuses."""
        names = ("prompt", "answers")
        check_fields("query", mapping, names, names)
        return cls(**mapping)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One thing that is asked, in some wordings. Raises EditError for an unknown kind or need, or no query."""

    kind: str
    """One of `KINDS`."""
    queries: tuple[Query, ...]
    need: str = "any"
    """Whether any right query makes the probe right, or all must be."""
    conditions: tuple[Query, ...] = ()
    """What the unedited base must answer right, all of it, for this probe to count (RippleEdits)."""

    def __post_init__(self) -> None:
        for name, known in (("kind", KINDS), ("need", NEEDS)):
            if getattr(self, name) not in known:
                value = getattr(self, name)
                raise EditError(f"field {name!r}: {given(value)} is not known; {did_you_mean(str(value), known)}")
        for name in ("queries", "conditions"):
            object.__setattr__(self, name, checked_list(name, getattr(self, name), "queries", Query))
        if not self.queries:
            raise EditError("field 'queries': none was given, at least one was expected")

    def to_dict(self) -> dict[str, Any]:
        """The probe as JSON values; what says nothing is left out."""
        values: dict[str, Any] = {"kind": self.kind, "queries": [query.to_dict() for query in self.queries]}
        if self.need != "any":
            values["need"] = self.need
        if self.conditions:
            values["conditions"] = [query.to_dict() for query in self.conditions]
        return values

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Probe:
        """Raises EditError: no mapping, an unknown or missing field, or what `Probe` itself refuses."""
        check_fields("probe", mapping, ("kind", "queries", "need", "conditions"), ("kind", "queries"))
        lists = {name: mapping[name] for name in ("queries", "conditions") if name in mapping}
        queries = {name: parsed_list(name, value, "queries", Query.from_dict) for name, value in lists.items()}
        return cls(**{**mapping, **queries})
