"""Edits, and records: an edit together with the prompts that measure it.

An `Edit` says what must change and holds everything that fitting may use. A `Record` adds what fitting must never see:
true paraphrases (generalization), neighbours (locality: "unchanged from the base"), probes (what follows from the edit)
and the answer before the edit. Both check every field when they are made.

Both have one JSON form, which is the project's own file format (`wise.formats.edit_file`): the fields of `Edit`, and
those of `Record` under `"test"`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from reprlib import repr as shortened
from typing import Any, NamedTuple
from unicodedata import normalize

from wise.errors import (
    EditError,
    check_fields,
    checked_list,
    checked_namespace,
    checked_prompts,
    checked_text,
    given,
    parsed_list,
)
from wise.probes import ASKS_THE_EDIT, Probe

_VERB = re.compile(
    r"(?<=\s)(?:(?:is|are|was|were|will be|has been)(?: (?:now|called|named|known as|spelled|situated in|located in|"
    r"born in|made by|made of|made from|written by|painted by|composed by|directed by|founded by|founded in|owned by|"
    r"led by|invented by|discovered by|played by|based in|headquartered in|released in|built in|buried in|married to)"
    r")?|equals|costs|means|speaks|lives in|works at|works for|works as|plays for|plays|studied at|died in|belongs to|"
    r"comes from|opens at|closes at|starts at|ends at|begins at|weighs|measures|lasts|stands for|flows into|lies in|"
    r"runs on|listens on|consists of|contains|follows|replaced|won|wrote|invented|discovered|founded|married)(?=\s)"
)
"""The verb of a statement, between its subject and its target."""
ROLES = ("system", "user", "assistant")
DEFAULT_NAMESPACE = "default"


class Message(NamedTuple):
    """One message of a chat."""

    role: str
    """One of `ROLES`."""
    content: str


Conversation = Sequence[Message | Mapping[str, str]]
"""Messages, as `Message` or as mappings of its fields."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One wanted change: the model must answer `prompt` with `target`.

    Spaces after a prompt and white space around a target or subject are removed; nothing else in a text is changed.

    Raises EditError if a field is of the wrong type, is blank, or contradicts another one.
    """

    prompt: str = ""
    """A question, an instruction, or the beginning of a text that the target completes. Left out, it is the last of
    `messages`. If that one refers to an earlier one ("What is its capital?"), give the whole question."""
    target: str
    """The wanted answer, without a terminator."""
    id: str = ""
    """Left out, it is the content id: the same for the same prompt, target, subject and namespace."""
    subject: str | None = None
    """The subject of the edit, as it is written in `prompt`. If its letters are composed otherwise (NFC, NFD), it is
    written like the prompt."""
    aliases: tuple[str, ...] = ()
    """Other names of the subject, by which users may call it."""
    messages: tuple[Message, ...] = ()
    """The conversation in which it is asked, as `role` and `content`, the user's question last. Without it the prompt
    is the only turn of a chat."""
    paraphrases: tuple[str, ...] = ()
    """Other wordings of `prompt` that a writer may fit on."""
    locality: tuple[str, ...] = ()
    """Prompts whose answers must not move and that a writer may fit on."""
    author: str | None = None
    time: str | None = None
    """When the edit was requested, ISO 8601."""
    namespace: str = DEFAULT_NAMESPACE

    def __post_init__(self) -> None:
        # Empty fields are skipped: loading a memory makes up to 100,000 edits.
        if self.messages != ():
            self._set("messages", checked_messages(self.messages))
            if self.messages and self.prompt == "":
                self._set("prompt", self.messages[-1].content)
        self._check_texts()
        self._set("prompt", self.prompt.rstrip(" "))
        self._set("target", self.target.strip())
        for name in ("paraphrases", "locality", "aliases"):
            if getattr(self, name) != ():
                self._set(name, checked_prompts(name, getattr(self, name)))
        if self.aliases and self.subject is None:
            raise EditError("field 'aliases': other names were given and no 'subject' that they are names of; add it")
        if self.subject is not None:
            self._set("subject", self._as_in_prompt(self.subject.strip()))
        self._check_time()
        texts = (self.prompt, *(message.content for message in self.messages[-1:]), *self.paraphrases)
        _check_apart("locality", self.locality, texts, "asks for the edited fact")
        if self.id == "":
            self._set("id", content_id(self))
        checked_text("id", self.id)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_texts(self) -> None:
        for name in ("prompt", "target"):
            checked_text(name, getattr(self, name))
        if self.namespace != DEFAULT_NAMESPACE:
            self._set("namespace", checked_namespace(self.namespace))
        for name in ("subject", "author", "time"):
            if getattr(self, name) is not None:
                checked_text(name, getattr(self, name))

    def _as_in_prompt(self, subject: str) -> str:
        spelling = as_written(subject, self.prompt)
        if spelling is not None:
            return spelling
        start = self.prompt.casefold().find(subject.casefold())
        like = self.prompt[start : start + len(subject)]
        hint = f"did you mean {like!r}?" if start >= 0 else "write it as the prompt does, or leave it out"
        raise EditError(f"field 'subject': {subject!r} does not occur in the prompt {shortened(self.prompt)}; {hint}")

    def _check_time(self) -> None:
        try:
            _ = self.time and datetime.fromisoformat(self.time)
        except ValueError:
            expectation = "an ISO 8601 time was expected, such as 2025-01-31T12:00:00+00:00"
            raise EditError(f"field 'time': {self.time!r} was given, {expectation}") from None

    def to_dict(self) -> dict[str, Any]:
        """The edit as JSON values, without empty optional fields."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        messages = {"messages": [message._asdict() for message in self.messages]} if self.messages else {}
        return values | lists | messages

    @classmethod
    def from_text(cls, statement: str, **fields_: Any) -> Edit:
        """The edit of a statement such as "The capital of France is Lyon.": the text up to its verb is the prompt, the
        rest is the target. fields_: further fields of the edit.

        Raises EditError where no verb is found, or as `Edit` itself does.
        """
        text = checked_text("statement", statement).strip()
        body = text.rstrip(".!").rstrip()
        verbs = [m for m in _VERB.finditer(body) if body[m.end() :].strip()]
        if not verbs or text.endswith("?"):
            raise EditError(
                f"field 'statement': in {shortened(text)} no verb was found behind which a target stands, as in "
                "'The capital of France is Lyon.'; give prompt and target instead"
            )
        return cls(prompt=body[: verbs[0].end()].strip(), target=body[verbs[0].end() :].strip(), **fields_)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Edit:
        """The edit that `to_dict` wrote. Raises EditError for an unknown or missing field, and as `Edit` does."""
        in_chat = isinstance(mapping, Mapping) and "messages" in mapping
        check_fields("edit", mapping, _EDIT_FIELDS, ("target",) if in_chat else ("prompt", "target"))
        return cls(**mapping)


def as_edit(value: Edit | Mapping[str, Any] | str) -> Edit:
    """An edit as it is, or of its fields (`Edit.from_dict`), or of a statement (`Edit.from_text`). Raises EditError."""
    if isinstance(value, Edit):
        return value
    if isinstance(value, str):
        return Edit.from_text(value)
    if isinstance(value, Mapping):
        return Edit.from_dict(value)
    hint = "; give its field 'edit'" if isinstance(value, Record) else ""
    raise EditError(
        f"field 'edit': {given(value)} was given; a wise.Edit, an object of its fields, or a statement such as 'The "
        f"capital of France is Lyon.' was expected{hint}"
    )


@dataclass(frozen=True, kw_only=True)
class Record:
    """An edit together with the prompts that measure it. Fitting may use `edit` alone.

    Raises EditError if a field is of the wrong type or blank, or a test prompt is one that fitting may use.
    """

    edit: Edit
    paraphrases: tuple[str, ...] = ()
    """True paraphrases, unseen in fitting: generalization."""
    free_paraphrases: tuple[str, ...] = ()
    """Freer rewordings, unseen in fitting; report them apart."""
    neighbours: tuple[str, ...] = ()
    """Prompts whose answers must stay what the base says: locality."""
    probes: tuple[Probe, ...] = ()
    """Questions with known answers on what follows from the edit, or on what must not: portability, ripple effects,
    several hops, locality with its gold answer."""
    generation_prompts: tuple[str, ...] = ()
    """Openings of free text about the subject: fluency and consistency. Not paraphrases."""
    answer: str | None = None
    """The right answer before the edit, where the data says it."""
    relation: str | None = None
    """Name of what is asked about the subject, such as a Wikidata property, where the data says it."""
    group: str = ""
    """Records of one group are one instance of the data, such as the edits behind one question of several hops."""
    source: str = ""
    """Where it was read, such as `facts.jsonl:12`."""

    def __post_init__(self) -> None:
        if not isinstance(self.edit, Edit):
            raise EditError(f"field 'edit': {given(self.edit)} was given, an Edit was expected")
        for name in _PROMPT_LISTS:
            object.__setattr__(self, name, checked_prompts(f"test.{name}", getattr(self, name)))
        for name in ("answer", "relation"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, checked_text(f"test.{name}", getattr(self, name)).strip())
        if self.group != "":
            checked_text("test.group", self.group)
        self._check_probes()
        prompts = (self.edit.prompt, *self.edit.paraphrases)
        _check_apart("test.paraphrases", self.paraphrases, prompts, "may be used for fitting")
        _check_apart("test.free_paraphrases", self.free_paraphrases, prompts, "may be used for fitting")
        _check_apart("test.neighbours", self.neighbours, self.edit.locality, "may be used for fitting")
        prompts = (*prompts, *self.paraphrases, *self.free_paraphrases)
        _check_apart("test.neighbours", self.neighbours, prompts, "asks for the edited fact")

    def _check_probes(self) -> None:
        object.__setattr__(self, "probes", checked_list("test.probes", self.probes, "probes", Probe))
        fitted = {self.edit.prompt, *self.edit.paraphrases, *self.edit.locality}
        for place, probe in enumerate(self.probes):
            repeated = () if probe.kind in ASKS_THE_EDIT else [q.prompt for q in probe.queries if q.prompt in fitted]
            for prompt in repeated:
                raise EditError(
                    f"field 'test.probes[{place}]': a probe of {probe.kind} asks {shortened(prompt)}, which may be "
                    "used for fitting; keep it in one place only"
                )

    def to_dict(self) -> dict[str, Any]:
        """The record in the project's own JSON shape; `source`, which is of one reading, is not in it."""
        lists = {name: list(getattr(self, name)) for name in _PROMPT_LISTS}
        test: dict[str, Any] = {name: prompts for name, prompts in lists.items() if prompts}
        if self.probes:
            test["probes"] = [probe.to_dict() for probe in self.probes]
        test |= {name: value for name in _TEST_TEXTS if (value := getattr(self, name))}
        return self.edit.to_dict() | ({"test": test} if test else {})

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Record:
        """The record that `to_dict` wrote. Raises EditError as `Edit.from_dict` and `Record` do."""
        check_fields("record", mapping, OWN_FIELDS)
        edit = Edit.from_dict({name: value for name, value in mapping.items() if name != "test"})
        test = mapping.get("test", {})
        check_fields("test", test, (*_PROMPT_LISTS, "probes", *_TEST_TEXTS), prefix="test.")
        probes = parsed_list("test.probes", test.get("probes", ()), "probes", Probe.from_dict)
        return cls(edit=edit, **(test | {"probes": probes}))


_EDIT_FIELDS = tuple(field.name for field in fields(Edit))
OWN_FIELDS = (*_EDIT_FIELDS, "test")
"""Fields of a record in the project's own file format."""
_PROMPT_LISTS = ("paraphrases", "free_paraphrases", "neighbours", "generation_prompts")
_TEST_TEXTS = ("answer", "relation", "group")
COLUMNS = (*OWN_FIELDS, *(f"test.{name}" for name in (*_PROMPT_LISTS, "probes", *_TEST_TEXTS)))
"""Fields of a record that may have a column of their own."""
LIST_COLUMNS = ("aliases", "paraphrases", "locality", *(f"test.{name}" for name in _PROMPT_LISTS))
"""Those that hold lists of texts."""


def texts_of(edit: Edit) -> Iterator[tuple[str, str]]:
    """What an edit says, with the name of the field, such as `paraphrases[0]`. Its subject stands in the prompt."""
    yield "prompt", edit.prompt
    yield "target", edit.target
    yield from ((f"messages[{i}]", message.content) for i, message in enumerate(edit.messages))
    for name in ("paraphrases", "locality", "aliases"):
        yield from ((f"{name}[{i}]", text) for i, text in enumerate(getattr(edit, name)))


def as_written(name: str, text: str) -> str | None:
    """A name as a text writes it, which may compose its letters otherwise (NFC, NFD); None where it is not there."""
    if name in text:
        return name
    return next((form for kind in ("NFC", "NFD") if (form := normalize(kind, name)) in text), None)


def check_one_namespace(edits: Iterable[Edit]) -> None:
    """Raises EditError for edits of several namespaces, which one memory would mix up."""
    names = sorted({edit.namespace for edit in edits})
    if len(names) > 1:
        raise EditError(
            f"field 'namespace': edits of several namespaces were given ({', '.join(map(repr, names[:9]))}), and a "
            "memory serves all of its edits alike; hand them in to a store with `wise stream`, which keeps namespaces "
            "apart, or give those of one namespace (`wise store export --namespace`)"
        )


def checked_messages(value: object) -> tuple[Message, ...]:
    """A conversation that ends with the user's question, or an empty one. Raises EditError."""
    parsed = []
    for place, message in enumerate(checked_list("messages", value, "messages")):
        fields_ = message._asdict() if isinstance(message, Message) else message
        if not isinstance(fields_, Mapping) or set(fields_) != {"role", "content"} or fields_["role"] not in ROLES:
            raise EditError(
                f"field 'messages[{place}]': {given(message)} was given, an object with 'role' (one of "
                f"{', '.join(ROLES)}) and 'content' was expected"
            )
        parsed.append(Message(fields_["role"], checked_text(f"messages[{place}].content", fields_["content"])))
    if parsed and parsed[-1].role != "user":
        raise EditError(f"field 'messages': the last one is of {parsed[-1].role!r}; it must be the user's question")
    return tuple(parsed)


def content_id(edit: Edit) -> str:
    """The first 16 hex digits of SHA-256 over what the edit asks for; where and by whom does not count."""
    identity = [edit.prompt, edit.target, edit.subject, edit.namespace]
    content = json.dumps(identity + [edit.messages] if edit.messages else identity)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def check_unique(edits: Sequence[Edit]) -> None:
    """Raises EditError for two edits of one id, naming it and both positions, counted from 0."""
    first: dict[str, int] = {}
    for position, edit in enumerate(edits):
        if edit.id in first:
            raise EditError(
                f"field 'id': {edit.id!r} is the id of edit {first[edit.id]} and of edit {position}; "
                "give each its own, or leave one out"
            )
        first[edit.id] = position


def check_lengths(edit: Edit, count_tokens: Callable[[str], int], context: int, reserve: int = 0) -> None:
    """Raises EditError where a prompt or a paraphrase with the target, or a locality prompt, exceeds the context.

    count_tokens: of a text, special tokens counted as the model will see them. reserve: tokens kept free, for what ends
    a target or goes before a prompt.
    """
    texts = {"the prompt": edit.prompt} | {f"paraphrases[{i}]": text for i, text in enumerate(edit.paraphrases)}
    whole = {f"field 'target': with {name} it": f"{text} {edit.target}" for name, text in texts.items()}
    whole |= {f"field 'locality[{i}]': it": text for i, text in enumerate(edit.locality)}
    for subject, text in whole.items():
        tokens = count_tokens(text)
        if tokens + reserve > context:
            raise EditError(
                f"{subject} takes {tokens} tokens and {reserve} are reserved, but the context holds {context}; "
                f"shorten it (edit {edit.id!r})"
            )


def _check_apart(name: str, prompts: Sequence[str], others: Sequence[str], why: str) -> None:
    for place, prompt in enumerate(prompts):
        if prompt in others:
            raise EditError(f"field {f'{name}[{place}]'!r}: {shortened(prompt)} also {why}; keep it in one place only")


def conversations(prompts: Any) -> list[Any]:
    """A list of prompts; a single text, message or conversation is a list of one. Raises EditError for what is none."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Message | Mapping):
        return [[prompts]]
    if not isinstance(prompts, Iterable):
        raise EditError(f"ask() takes texts and conversations: {given(prompts)} was given")
    several = list(prompts)
    return [several] if any(isinstance(one, Message | Mapping) for one in several) else several
