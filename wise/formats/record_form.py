"""A layout whose fields map one by one onto a `Record`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from reprlib import repr as shortened

from wise.edits import Edit, Record, as_written
from wise.errors import EditError, checked_text
from wise.formats.fields import Fields, cleaned, query, texts_of
from wise.formats.layout import Layout
from wise.formats.tracked_row import peek
from wise.probes import Probe, Query

_PLACEHOLDER = re.compile(r"\{[^{}]*\}|\[[A-Z]+\]|<[A-Za-z]+>|%s")
"""Where a template has its subject; only `{}` is filled."""


@dataclass(frozen=True, kw_only=True)
class AskedField:
    """Where probes of one kind stand."""

    kind: str
    prompt: str
    """Path of one prompt or of a list of them."""
    answers: tuple[str, ...]
    """The first that holds any counts; all of it, lists of aliases and all, is right. Of two lists side by side, each
    prompt has the answer of its place."""
    shared: bool = False
    """The answers hold for every prompt, also where they are a list: that is the names of one thing."""
    within: str = ""
    """Objects in which both paths begin, each of them one probe or several; else the record itself."""


@dataclass(frozen=True, kw_only=True)
class RecordForm:
    """One published layout. A path names a field; dots go into objects, lists are gone through."""

    format: str
    prompt: str
    target: str
    target_listed: bool = False
    """The target is the first text of a list."""
    subject: str = "subject"
    id: tuple[str, ...] = ()
    """Where the set's own record number stands; the first that is there counts. Tells no form apart."""
    answer: tuple[str, ...] = ()
    relation: str = ""
    paraphrases: tuple[str, ...] = ()
    free_paraphrases: tuple[str, ...] = ()
    generation_prompts: str = ""
    neighbours: tuple[str, ...] = ()
    """The first that holds any counts."""
    asked: tuple[AskedField, ...] = ()
    """Of those of locality with a gold answer, only what is a neighbour too is asked."""
    aliases: tuple[str, ...] = ()
    """Other names of the subject: in its place they make probes whose answer is the target."""
    continuation: str = ""
    """Text of another origin that goes on from the prompt, whether or not it repeats it: a probe of kind `ood`."""
    also_required: tuple[str, ...] = ()
    """Further paths that every record has: without them a form of common names would be found in other data."""
    unread: tuple[str, ...] = ()
    """Further fields that a record may have, which tell that it has this form."""
    mark: tuple[str, str] = ("", "")
    """As `Layout.mark`."""
    template: bool = False
    """The prompt has `{}` where the subject goes, also if it names the subject besides."""
    paraphrase_names_subject: bool = False
    """A wording without the subject is a failed one."""
    blank_target_skipped: bool = False
    """A record with an empty or null target asks for no edit."""
    strict: bool = False
    """The project's own format: read by `Record.from_dict`, nothing stepped over."""

    def layout(self) -> Layout:
        paths = [self.subject, self.relation, self.generation_prompts, self.continuation, *self.answer]
        paths += [*self.paraphrases, *self.free_paraphrases, *self.neighbours, *self.aliases, *self.unread]
        for ask in self.asked:
            paths += [ask.within] if ask.within else [ask.prompt, *ask.answers]
        required = (self.prompt, self.target, *self.also_required)
        return Layout(
            format=self.format, required=required, optional=tuple(paths), read=self._read, subject=self.subject,
            mark=self.mark, strict=self.strict,
        )

    def _read(self, fields: Fields, place: int) -> list[Record]:
        if self.strict:
            return [Record.from_dict(fields.row)]
        for path in self.also_required:
            fields.text(path)
        listed = fields.filled(self.target) if self.target_listed else []
        target = next(iter(listed), None) if self.target_listed else fields.single(self.target)
        blank = target is None if not isinstance(target, str) else not target.strip()
        if self.blank_target_skipped and self.target in fields.row and blank:
            what = "empty" if self.target_listed else "null or empty"
            fields.note(f"field {self.target!r}: {what}, so no edit is asked for; the record was skipped")
            return []
        prompt, subject = _prompt_and_subject(self, fields)
        new_target = listed[0] if listed else fields.text(self.target)
        numbers = (number for name in self.id if (number := fields.number(name)) is not None)
        edit_id = next((f"{self.format}-{number}" for number in numbers), "")
        edit = Edit(prompt=prompt, target=new_target, subject=subject, id=edit_id)
        paraphrases = _paraphrases(self, fields, edit)
        free = fields.prompts(self.free_paraphrases, {edit.prompt, *paraphrases}, edit.subject)
        neighbours: tuple[str, ...] = ()
        for path in self.neighbours:
            neighbours = neighbours or fields.prompts((path,), {edit.prompt, *paraphrases, *free})
        answers = [answer for path in self.answer for answer in fields.filled(path)]
        record = Record(
            edit=edit,
            paraphrases=paraphrases,
            free_paraphrases=free,
            neighbours=neighbours,
            probes=tuple(_probes(self, fields, edit, frozenset(neighbours))),
            generation_prompts=_generation_prompts(self, fields, edit),
            answer=answers[0] if answers else None,
            relation=fields.optional_text(self.relation) if self.relation else None,
        )
        return [record]


def _prompt_and_subject(form: RecordForm, fields: Fields) -> tuple[str, str | None]:
    prompt = fields.text(form.prompt)
    given_subject = fields.single(form.subject)
    subject = None if given_subject is None else checked_text(form.subject, given_subject).strip()
    written = None if subject is None else as_written(subject, prompt)
    if "{}" in prompt and (form.template or written is None):
        if subject is None:
            raise fields.lacking(form.subject)
        return prompt.replace("{}", subject), subject
    if "{}" in prompt or (subject is not None and written is None and _PLACEHOLDER.search(prompt)):
        raise EditError(
            f"field {form.prompt!r}: {shortened(prompt)} was given, a prompt that names its subject or has {{}} in its "
            f"place was expected; write {subject!r} where it goes, or leave {form.subject!r} out"
        )
    if subject is not None and written is None:
        fields.note(f"field {form.subject!r}: does not occur in the prompt; dropped")
    return prompt, written


def _paraphrases(form: RecordForm, fields: Fields, edit: Edit) -> tuple[str, ...]:
    paths = [path for path in form.paraphrases if path != "rephrase_prompt" or _is_paraphrase(fields)]
    wordings = fields.prompts(paths, {edit.prompt}, edit.subject)
    if not form.paraphrase_names_subject or edit.subject is None:
        return wordings
    naming = tuple(wording for wording in wordings if as_written(edit.subject, wording) is not None)
    if len(naming) < len(wordings):
        fields.note("a paraphrase does not name the subject; left out")
    return naming


def _is_paraphrase(fields: Fields) -> bool:
    """EasyEdit's CounterFact often has a generation prompt for its `rephrase_prompt`."""
    kind = fields.row.get("rephrase_kind")
    if kind is not None:
        return bool(kind == "paraphrase")
    generation = {text for _, text in fields.texts("generation_prompts")}
    return not any(text in generation for _, text in fields.texts("rephrase_prompt"))


def _generation_prompts(form: RecordForm, fields: Fields, edit: Edit) -> tuple[str, ...]:
    paths = [form.generation_prompts] if form.generation_prompts else []
    if paths and fields.row.get("rephrase_kind") == "generation":
        paths.append("rephrase_prompt")
    return fields.prompts(paths, (), edit.subject)


def _probes(form: RecordForm, fields: Fields, edit: Edit, neighbours: Collection[str]) -> Iterator[Probe]:
    seen: set[tuple[str, Query]] = set()
    for ask in form.asked:
        for part in fields.objects(ask.within) if ask.within else [fields]:
            for name, prompt, answers in _questions(ask, part):
                field, prompt = ask.within or ask.prompt, cleaned(prompt, edit.subject)
                if ask.kind == "locality.gold" and prompt not in neighbours:
                    if prompt:
                        fields.note(f"field {field!r}: a question beside other neighbours; not asked")
                    continue
                if ask.kind == "locality.distracting":
                    answers = _without(edit.target, answers)
                right = [answer for group in answers for answer in group]
                if not prompt or not right:
                    fields.note(f"field {field!r}: a question without a right answer; not asked")
                    continue
                question = query(name, prompt, right)
                if (ask.kind, question) not in seen:
                    seen.add((ask.kind, question))
                    yield from fields.probe(ask.kind, (question,), edit)
    yield from _alias_probes(form, fields, edit)
    yield from _continuation_probes(form, fields, edit)


def _questions(ask: AskedField, part: Fields) -> Iterator[tuple[str, str, list[list[str]]]]:
    """Each prompt with its name and its right answers, those that stand in one list together."""
    prompts = list(part.texts(ask.prompt))
    path = next((path for path in ask.answers if peek(part.row, path) is not None), ask.answers[0])
    name, value = part.prefix + path, part.single(path)
    if ask.shared or not (isinstance(value, list) and isinstance(part.row.get(ask.prompt), list)):
        answers = _groups(name, value)
        yield from ((prompt_name, prompt, answers) for prompt_name, prompt in prompts)
        return
    if len(value) != len(prompts):
        raise EditError(
            f"field {name!r}: a list of {len(value)} was given, one answer for each of the {len(prompts)} prompts "
            f"of {part.prefix + ask.prompt!r} was expected"
        )
    for place, (prompt_name, prompt) in enumerate(prompts):
        yield prompt_name, prompt, _groups(f"{name}[{place}]", value[place])


def _groups(name: str, value: object) -> list[list[str]]:
    """The texts in `value`; the names of one thing, which stand in one inner list, in one list."""
    groups = [(f"{name}[{i}]", group) for i, group in enumerate(value)] if isinstance(value, list) else [(name, value)]
    texts = [[text for _, text in texts_of(at, group) if text.strip()] for at, group in groups]
    return [group for group in texts if group]


def _without(target: str, answers: list[list[str]]) -> list[list[str]]:
    """Without the answer that the question rules out: sets of true facts list it among the right ones."""
    ruled_out = target.casefold()
    return [group for group in answers if ruled_out not in (text.strip().casefold() for text in group)]


def _alias_probes(form: RecordForm, fields: Fields, edit: Edit) -> Iterator[Probe]:
    """The prompt under other names of its subject."""
    if edit.subject is None:
        return
    for path in form.aliases:
        for alias in fields.prompts((path,), {edit.subject}):
            prompt = edit.prompt.replace(edit.subject, alias.strip())
            yield Probe(kind="portability.subject_aliasing", queries=(query(path, prompt, (edit.target,)),))


def _continuation_probes(form: RecordForm, fields: Fields, edit: Edit) -> Iterator[Probe]:
    answer = fields.optional_text(form.continuation) if form.continuation else None
    if answer is None:
        return
    rest = answer.removeprefix(edit.prompt)
    if rest.strip() and not rest[0].isalnum():
        answer = rest.strip()
    yield Probe(kind="ood", queries=(query(form.continuation, edit.prompt, (answer,)),))
