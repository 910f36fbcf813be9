"""What the fields of each published editing set mean: a table, and the one function that reads by it.

A `Form` is one row: which field of a record holds the prompt, the target, the paraphrases and
so on. Several forms share a format, since the same set was published in different clothes.
Two things hold for all of them, because they decide what a figure means:

* a **paraphrase** is another wording of the same question. Text that only mentions the subject
  (CounterFact's generation prompts), another name of the subject or a conclusion from the
  edit (KnowEdit's portability), and wordings that lost the subject are not, and are left out;
* a **neighbour** is a prompt that the edit must not move. KnowEdit's "Forgetfulness" prompts
  are not: they ask the edited question itself, with the new answer named and ruled out.

Published sets have defects that their users know and step over. They are stepped over here
too, each with a note for the log: a subject that the prompt does not hold is dropped, an empty
test prompt is left out, and a zsRE record with an empty `alt` asks for no edit. Our own format
has no such licence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from wise.checks import checked_text, given, missing
from wise.edits import Edit, Record
from wise.errors import EditError

Row = Mapping[str, Any]
"""One record as its file has it."""

_LIST_DASH = re.compile(r"^-\s*(?=[^\W\d_])")
"""Some zsRE rephrasings were cut out of a list and kept its dash."""

_STUBS = frozenset({"", "Reformulated Question:"})
"""What stands in WikiBigEdit where a rephrasing failed, and in others where there is none."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """One published layout. A path names a field; dots go into objects, lists are gone through."""

    format: str
    prompt: str
    target: str
    subject: str = "subject"
    id: tuple[str, ...] = ()
    """Where the set's own record number stands; the first that is there counts. Tells no form apart."""
    answer: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    free_paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    """The first that holds any counts."""
    unread: tuple[str, ...] = ()
    """Further fields by which the form is told from others."""
    neighbour_mark: str = ""
    """Where neighbours begin with this, it is this form."""
    template: bool = False
    """The prompt has `{}` where the subject goes."""
    paraphrase_names_subject: bool = False
    """A wording without the subject is a failed one."""
    blank_target_skipped: bool = False
    """A record with an empty target asks for no edit."""
    strict: bool = False
    """The project's own format: read by `Record.from_dict`, nothing stepped over."""

    @property
    def fields(self) -> frozenset[str]:
        """The names a record of this form may have, outermost level."""
        paths = (self.prompt, self.target, self.subject, *self.answer, *self.paraphrases)
        paths += (*self.free_paraphrases, *self.neighbours, *self.unread)
        return frozenset(path.partition(".")[0] for path in paths)


FORMS: tuple[Form, ...] = (
    Form(
        format="wise",
        prompt="prompt",
        target="target",
        unread=("id", "paraphrases", "locality", "author", "time", "namespace", "test"),
        strict=True,
    ),
    # zsRE as EasyEdit writes it, which WikiBigEdit and the sets used with WISE follow.
    Form(
        format="zsre",
        prompt="prompt",
        target="target_new",
        answer=("ground_truth", "target_true"),
        paraphrases=("rephrase_prompt",),
        neighbours=("locality_prompt",),
        unread=("locality_ground_truth",),
        id=("case_id",),
        neighbour_mark="nq question: ",
    ),
    # zsRE as MEND published it; `answers` is the truth, `alt` what the edit makes of it.
    Form(
        format="zsre",
        prompt="src",
        target="alt",
        answer=("answers",),
        paraphrases=("rephrase",),
        neighbours=("loc",),
        unread=("loc_ans", "pred", "cond", "portability"),
        blank_target_skipped=True,
    ),
    # CounterFact as ROME published it.
    Form(
        format="counterfact",
        prompt="requested_rewrite.prompt",
        target="requested_rewrite.target_new.str",
        subject="requested_rewrite.subject",
        id=("case_id",),
        answer=("requested_rewrite.target_true.str",),
        paraphrases=("paraphrase_prompts",),
        neighbours=("neighborhood_prompts",),
        unread=("case_id", "pararel_idx", "attribute_prompts", "generation_prompts"),
        template=True,
    ),
    # CounterFact as EasyEdit writes it, plain or enriched.
    Form(
        format="counterfact",
        prompt="prompt",
        target="target_new",
        id=("cf_case_id", "case_id"),
        answer=("target_true", "ground_truth"),
        paraphrases=("template_paraphrases", "paraphrase_prompts_real", "rephrase_prompt"),
        free_paraphrases=("llm_cloze_paraphrases",),
        neighbours=("neighborhood_prompts", "locality_prompt"),
        unread=("case_id", "locality_ground_truth", "relation_id", "template", "generation_prompts"),
        paraphrase_names_subject=True,
    ),
    Form(
        format="knowedit",
        prompt="prompt",
        target="target_new",
        answer=("ground_truth",),
        paraphrases=("rephrase_prompt", "rephrase"),
        neighbours=("locality.Relation_Specificity.prompt",),
        unread=("portability", "cond"),
    ),
    # KnowEdit's WikiBio: the target is the sentence that goes on from the text.
    Form(
        format="knowedit",
        prompt="text",
        target="labels",
        subject="concept",
        neighbours=("locality.Relation_Specificity.prompt",),
    ),
    # QAEdit: its `id` counts within each `source`, so it names no record.
    Form(
        format="qaedit",
        prompt="prompt",
        target="target",
        paraphrases=("rephrase",),
        neighbours=("locality.loc",),
        unread=("id", "source"),
    ),
)

FORMATS: tuple[str, ...] = ("auto", *sorted({form.format for form in FORMS}))
"""What may be asked for."""


def recognise(row: Row, format: str) -> Form:
    """The form that a file has, by its first record.

    Where several fit, the one that knows most of the record's fields; with `format="auto"` it
    must find its prompt and target there, or know half of the fields (so that a misspelt
    field is named rather than the whole file refused).

    Raises:
        EditError: no form of this format fits; names the fields found.
    """
    forms = [form for form in FORMS if format in ("auto", form.format)]
    best = max(forms, key=lambda form: (_marked(form, row), len(form.fields & row.keys())))
    known = len(best.fields & row.keys())
    if format != "auto" or 2 * known >= len(row) or (_has(row, best.prompt) and _has(row, best.target)):
        return best
    raise EditError(
        f"no known format has these fields: {', '.join(sorted(row))}; known formats are "
        f"{', '.join(FORMATS[1:])}, and ours has at least 'prompt' and 'target'"
    )


def convert(form: Form, row: Row, note: Callable[[str], None]) -> Record | None:
    """The record that `row` holds, or None where it asks for no edit.

    Args:
        form: what its fields mean.
        row: the record as its file has it.
        note: is told in one sentence of every defect that was stepped over.

    Raises:
        EditError: naming the field as the file does.
    """
    if form.strict:
        return Record.from_dict(row)
    target = _single(row, form.target)
    if form.blank_target_skipped and isinstance(target, str) and not target.strip():
        note(f"field {form.target!r}: empty, so no edit is asked for; the record was skipped")
        return None
    prompt, subject = _prompt_and_subject(form, row, note)
    edit = Edit(prompt=prompt, target=_text(row, form.target), subject=subject, id=_identity(form, row))
    paraphrases = _paraphrases(form, row, edit, note)
    free = _prompts(row, form.free_paraphrases, {edit.prompt, *paraphrases}, note)
    neighbours: tuple[str, ...] = ()
    for path in form.neighbours:
        neighbours = neighbours or _prompts(row, (path,), {edit.prompt, *paraphrases, *free}, note)
    answers = [text for path in form.answer for _, text in _texts(row, path) if text.strip()]
    return Record(
        edit=edit,
        paraphrases=paraphrases,
        free_paraphrases=free,
        neighbours=neighbours,
        answer=answers[0] if answers else None,
    )


def _prompt_and_subject(form: Form, row: Row, note: Callable[[str], None]) -> tuple[str, str | None]:
    prompt = _text(row, form.prompt)
    given_subject = _single(row, form.subject)
    subject = None if given_subject is None else checked_text(form.subject, given_subject).strip()
    if form.template and "{}" in prompt:
        if subject is None:
            raise missing(form.subject, row)
        prompt = prompt.replace("{}", subject)
    if subject is not None and subject not in prompt:
        note(f"field {form.subject!r}: does not occur in the prompt; dropped")
        subject = None
    return prompt, subject


def _identity(form: Form, row: Row) -> str:
    for name in form.id:
        number = row.get(name)
        if number is None:
            continue
        if not isinstance(number, int | str) or isinstance(number, bool):
            raise EditError(f"field {name!r}: {given(number)} was given, a number or text was expected")
        return f"{form.format}-{checked_text(name, str(number))}"
    return ""


def _paraphrases(form: Form, row: Row, edit: Edit, note: Callable[[str], None]) -> tuple[str, ...]:
    paths = [path for path in form.paraphrases if path != "rephrase_prompt" or _is_paraphrase(row)]
    wordings = _prompts(row, paths, {edit.prompt}, note)
    if not form.paraphrase_names_subject or edit.subject is None:
        return wordings
    for wording in wordings:
        if edit.subject not in wording:
            note("a paraphrase does not name the subject; left out")
    return tuple(wording for wording in wordings if edit.subject in wording)


def _is_paraphrase(row: Row) -> bool:
    """EasyEdit's CounterFact often has a generation prompt for its `rephrase_prompt`."""
    if row.get("rephrase_kind") is not None:
        return bool(row["rephrase_kind"] == "paraphrase")
    generation = {text for _, text in _texts(row, "generation_prompts")}
    return not any(text in generation for _, text in _texts(row, "rephrase_prompt"))


def _prompts(
    row: Row, paths: tuple[str, ...] | list[str], known: set[str], note: Callable[[str], None]
) -> tuple[str, ...]:
    """What stands at the paths, each once, without what is already known."""
    found: dict[str, None] = {}
    for path in paths:
        for name, text in _texts(row, path):
            prompt = _LIST_DASH.sub("", text).rstrip(" ")
            if prompt.strip() in _STUBS:
                note(f"field {path!r}: an empty test prompt; left out")
            elif prompt not in known:
                found[checked_text(name, prompt)] = None
    return tuple(found)


def _text(row: Row, path: str) -> str:
    """The text that must stand at `path`."""
    value = _single(row, path)
    if value is None:
        raise missing(path, row)
    return checked_text(path, value)


def _single(row: Row, path: str) -> object:
    """What stands at `path`, None where nothing does; lists on the way are refused."""
    value: object = row
    trail: list[str] = []
    for key in path.split("."):
        if not isinstance(value, Mapping):
            raise EditError(f"field {'.'.join(trail)!r}: {given(value)} was given, an object was expected")
        value = value.get(key)
        trail.append(key)
        if value is None:
            return None
    return value


def _texts(row: Row, path: str) -> Iterator[tuple[str, str]]:
    """Every text at `path` with its full name, such as `loc[2].prompt`."""
    name, _, rest = path.partition(".")
    yield from _walk(name, row.get(name), rest)


def _walk(name: str, value: object, path: str) -> Iterator[tuple[str, str]]:
    if value is None:
        return
    if isinstance(value, list):
        for place, item in enumerate(value):
            yield from _walk(f"{name}[{place}]", item, path)
    elif not path:
        if not isinstance(value, str):
            raise EditError(f"field {name!r}: {given(value)} was given, text was expected")
        yield name, value
    elif isinstance(value, Mapping):
        key, _, rest = path.partition(".")
        yield from _walk(f"{name}.{key}", value.get(key), rest)
    else:
        raise EditError(f"field {name!r}: {given(value)} was given, an object was expected")


def _has(row: Row, path: str) -> bool:
    try:
        return _single(row, path) is not None
    except EditError:
        return False


def _marked(form: Form, row: Row) -> bool:
    if not form.neighbour_mark:
        return False
    try:
        texts = [text for path in form.neighbours for _, text in _texts(row, path)]
    except EditError:
        return False
    return any(text.startswith(form.neighbour_mark) for text in texts)
