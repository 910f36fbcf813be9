"""The questions that ship with wise: what may be asked about a subject, each in many wordings.

They hold no facts: the answers are of the right kind and belong to no subject. The relation reader is trained on them,
and an edit that asks one of them is fitted on its wordings too. `read_questions` reads a file of other questions.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from wise.errors import ConfigError, did_you_mean

SUBJECTS = "subjects"
FIELDS = ("wordings", "requests", "answers")
LEAST_SUBJECTS, LEAST_RELATIONS, LEAST_WORDINGS = 3, 4, 2
"""Of a kind, of a kind, and of a relation: what one batch of teaching takes."""


QuestionSet = Mapping[str, Mapping[str, Any]]
"""`subjects`: kind -> names; and kind -> relation -> `wordings` (questions end in "?", the others are beginnings of a
sentence that the answer ends), `requests` (imperatives) and `answers` (of the right kind)."""


@cache
def builtin_questions() -> QuestionSet:
    return tomllib.loads((files("wise.training.router") / "builtin_questions.toml").read_text(encoding="utf-8"))


def wordings(relation: Mapping[str, Sequence[str]]) -> list[str]:
    """All wordings of a relation, with `{}` for the subject."""
    return [*relation["wordings"], *relation.get("requests", ())]


def read_questions(path: Path, *, added_to: QuestionSet | None = None) -> QuestionSet:
    """Questions in a file that has the shape of `QuestionSet`.

    added_to: questions that they are added to; kinds and relations of the same name become one.

    Raises ConfigError that says what is wrong: no TOML, no such shape, a wording that does not have exactly one `{}` or
    stands under two relations of a kind, or too few wordings, relations or subjects to teach from.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}; a TOML file of questions was expected") from error
    try:
        questions = _validated(content)
        whole = questions if added_to is None else _merged(added_to, questions)
        for kind in questions[SUBJECTS]:
            _check_enough(kind, whole)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return whole


def _validated(content: Mapping[str, Any]) -> QuestionSet:
    """The same, white space around texts taken off. Raises ConfigError for what does not have the shape."""
    kinds = content.get(SUBJECTS)
    if not isinstance(kinds, dict) or not kinds:
        raise ConfigError("[subjects] is missing: it names kinds of subject, such as ship = ['the Vasa', ...]")
    for name in content:
        if name != SUBJECTS and name not in kinds:
            raise ConfigError(f"[{name}]: no such kind under [subjects]; {did_you_mean(name, kinds)}")
    subjects = {kind: _texts(f"subjects.{kind}", names) for kind, names in kinds.items()}
    return {SUBJECTS: subjects} | {kind: _relations(kind, content.get(kind, {})) for kind in kinds}


def _relations(kind: str, content: Any) -> dict[str, dict[str, list[str]]]:
    relations = {}
    for name, relation in _table(kind, content).items():
        where = f"{kind}.{name}"
        for field in _table(where, relation):
            if field not in FIELDS:
                raise ConfigError(f"[{where}] {field}: is not known; {did_you_mean(field, FIELDS)}")
        relations[name] = {field: _texts(f"{where}.{field}", relation.get(field, [])) for field in FIELDS}
        for wording in wordings(relations[name]):
            count = wording.count("{}")
            if count != 1:
                raise ConfigError(f"[{where}] {shortened(wording)}: exactly one {{}} is expected, and it has {count}")
    _check_apart(kind, relations)
    return relations


def _table(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: a {type(value).__name__} was given, a table was expected")
    return value


def _texts(where: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise ConfigError(f"{where}: {shortened(value)} was given, a list of texts was expected")
    texts = [text.strip() for text in value]
    twice = next((text for text in texts if texts.count(text) > 1), None)
    if twice is not None:
        raise ConfigError(f"{where}: {shortened(twice)} is there twice; leave one out")
    return texts


def _check_apart(kind: str, relations: Mapping[str, Mapping[str, list[str]]]) -> None:
    seen: dict[str, str] = {}
    for name, relation in relations.items():
        for wording in wordings(relation):
            if wording in seen:
                other = "twice there" if seen[wording] == name else f"under [{kind}.{seen[wording]}] too"
                raise ConfigError(f"[{kind}.{name}] {shortened(wording)}: stands {other}; leave one out")
            seen[wording] = name


def _check_enough(kind: str, whole: QuestionSet) -> None:
    named = len(whole[SUBJECTS][kind])
    if named < LEAST_SUBJECTS:
        raise ConfigError(f"subjects.{kind}: at least {LEAST_SUBJECTS} are needed, and it has {named}")
    if len(whole[kind]) < LEAST_RELATIONS:
        raise ConfigError(f"[{kind}]: at least {LEAST_RELATIONS} relations are needed, and it has {len(whole[kind])}")
    for name, relation in whole[kind].items():
        count = len(wordings(relation))
        if count < LEAST_WORDINGS:
            raise ConfigError(f"[{kind}.{name}]: at least {LEAST_WORDINGS} wordings are needed, and it has {count}")


def _merged(first: QuestionSet, second: QuestionSet) -> QuestionSet:
    """Both as one. Raises ConfigError where a wording then stands under two relations of a kind."""

    def united(one: Mapping[str, Any], other: Mapping[str, Any], names: Iterable[str]) -> dict[str, list[str]]:
        return {name: list(dict.fromkeys((*one.get(name, ()), *other.get(name, ())))) for name in names}

    kinds = dict.fromkeys((*first[SUBJECTS], *second[SUBJECTS]))
    whole: dict[str, dict[str, Any]] = {SUBJECTS: united(first[SUBJECTS], second[SUBJECTS], kinds)}
    for kind in kinds:
        one, other = first.get(kind, {}), second.get(kind, {})
        names = dict.fromkeys((*one, *other))
        whole[kind] = {name: united(one.get(name, {}), other.get(name, {}), FIELDS) for name in names}
        _check_apart(kind, whole[kind])
    return whole
