"""Prompts at which the memory must be silent, in classes by how near they come to an edit.

The classes: everyday questions; the edit's relation asked of others; other questions about its subject; its prompt with
a similar name; running text, also with the subject named in it; chats, also behind a turn with the edit.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from wise.edits import Record
from wise.lab.eval.routing.material import Draft, Material, Source, choose, evenly
from wise.lab.eval.routing.relations import NEGATIVE_PROBES, AskedRelation, template_of
from wise.lab.eval.routing.topics import Phrases, normal, topics_of, words

LONG = 256
"""Tokens of a long context, where three quarters of what the base sees are more than that."""
LEAST = 0.15
"""Share of common trigrams below which a name is not near."""
COMPANY = 0.05
"""A relation that so few of the most usual one's subjects have is not asked of a subject."""
PER_RECORD = 10
"""Prompts that one record contributes to a class at most."""
NO_QUESTIONS = "no generic question is left that names no edited subject"
# None of them says or asks anything about what is named, but that it is talked about.
MENTIONS = (
    "Someone in the next room was talking about {}.",
    "A magazine with an article about {} lay on the table.",
    "On the train I overheard two strangers who could not agree about {}.",
    "One question in the quiz last night was about {}, and nobody at our table had expected it.",
    "My neighbour wanted to know whether I had ever heard of {}.",
    "A note in the margin mentions {} and nothing else.",
    "She wrote the words {} on a card and turned it over.",
    "The speaker mentioned {} once and then changed the subject.",
    "Half of the talk at dinner was about {}, although few of us knew much about it.",
    "Among the old newspaper cuttings was one about {}.",
    "For no reason at all I had to think of {} on the way home.",
    "The next entry of the index refers to {} on three pages.",
)


def _passages(material: Material) -> Iterator[list[str]]:
    remaining = material.max_tokens
    for text in material.texts:
        passages = []
        for piece in _pieces(material, text):
            length = material.length(piece)
            if length > remaining:
                piece, length = _beginning(material, piece, remaining), remaining
            passages += [piece] if piece else []
            remaining -= length
            if remaining <= 0:
                break
        if passages:
            yield passages
        if remaining <= 0:
            return


def _pieces(material: Material, text: str) -> Iterator[str]:
    """`text` in halves of halves, until each fits the context; a word that does not is left out."""
    if material.fits(text):
        yield text
        return
    parts = text.split()
    if len(parts) > 1:
        middle = len(parts) // 2
        yield from _pieces(material, " ".join(parts[:middle]))
        yield from _pieces(material, " ".join(parts[middle:]))


def _beginning(material: Material, text: str, room: int) -> str:
    """As many words of `text` from its start as make no more than `room` tokens."""
    parts = text.split()
    low, high = 0, len(parts)
    while low < high:
        middle = (low + high + 1) // 2
        if material.length(" ".join(parts[:middle])) <= room:
            low = middle
        else:
            high = middle - 1
    return " ".join(parts[:low])


def _documents(material: Material, room: int) -> list[Source]:
    fillers = material.sentences()
    if not fillers or not material.questions:
        return []
    lengths = [material.length(sentence) for sentence in fillers]
    named = [place for place, record in enumerate(material.records) if record.edit.subject is not None]
    results: dict[int, str] = {}
    remaining = material.max_tokens
    for place in (named[i] for i in evenly(range(len(named)))):
        text = _document(material, material.records[place], fillers, lengths, room)
        if text is None:
            continue
        remaining -= material.length(text)
        if remaining < 0:
            break
        results[place] = text
    return [(material.records[place].edit.id, [text]) for place, text in sorted(results.items())]


def _document(
    material: Material, record: Record, fillers: Sequence[str], lengths: Sequence[int], room: int
) -> str | None:
    rng = material.rng("long_context", record)
    question = rng.choice(material.questions)
    for mention in rng.sample(MENTIONS, 3):
        core = mention.replace("{}", record.edit.subject or "")
        start = rng.randrange(len(fillers))
        total, count = material.length(core) + material.length(question), 0
        while count < len(fillers) and total + lengths[(start + count) % len(fillers)] <= room:
            total += lengths[(start + count) % len(fillers)]
            count += 1
        around = [fillers[(start + i) % len(fillers)] for i in range(count)]
        text = " ".join([*around[: count // 2], core, *around[count // 2 :], question])
        if material.length(text) <= room and not material.edited.states(text):
            return text
    return None


def trigrams(name: str) -> frozenset[str]:
    """The runs of three characters of a name's normal form, a blank put around it."""
    padded = f" {normal(name)} "
    return frozenset(padded[i : i + 3] for i in range(len(padded) - 2))


def same_name(one: str, other: str) -> bool:
    """The two may well name one thing: the same words, or all words of one in the other.

    >>> same_name("Martín Solares", "Martin Solares"), same_name("Lincoln", "Abraham Lincoln")
    (True, True)
    """
    first, second = set(words(one)), set(words(other))
    return first <= second or second <= first


class Names:
    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._trigrams = [trigrams(name) for name in self.names]
        self._holding: dict[str, list[int]] = defaultdict(list)
        for place, entry in enumerate(self._trigrams):
            for trigram in entry:
                self._holding[trigram].append(place)

    def nearest(self, name: str) -> Iterator[str]:
        """Other names, those of the largest Jaccard index of trigrams first, none below `LEAST`."""
        name_trigrams = trigrams(name)
        common = Counter(place for trigram in name_trigrams for place in self._holding.get(trigram, ()))
        ranked = []
        for place, count in common.items():
            index = count / (len(name_trigrams) + len(self._trigrams[place]) - count)
            if index >= LEAST and not same_name(name, self.names[place]):
                ranked.append((-index, place))
        for _, place in sorted(ranked):
            yield self.names[place]


def _same_relation(material: Material, record: Record, others: dict[str, list[Record]]) -> Iterator[str]:
    relation = material.relations.asked_relation(record.edit, record.paraphrases)
    subject_in = material.relations.subject_in
    neighbours = [text for text in record.neighbours if subject_in(text, relation.relation) is not None]
    right = [text for text in neighbours if _is_other(material, text, record, relation)]
    yield from right
    if right or relation.relation is None:
        return
    rng = material.rng("same_relation", record)
    same = others.get(relation.relation, [])
    for other in rng.sample(same, min(PER_RECORD, len(same))):
        if _is_other(material, other.edit.prompt, record, relation):
            yield other.edit.prompt


def _is_other(material: Material, text: str, record: Record, relation: AskedRelation) -> bool:
    """`text`, which asks what the record does, asks it of a subject that was not edited. The target is none either:
    where a relation holds both ways, as that of twin cities, its answer follows from the edit."""
    target = Phrases([words(record.edit.target)])
    return not material.edited.may_ask(text, relation) and not target.within(text)


def _by_relation(material: Material, records: Sequence[Record]) -> dict[str, list[Record]]:
    results: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        relation = material.relations.of(record.edit)
        if relation is not None:
            results[relation].append(record)
    return results


def _same_subject(
    material: Material, record: Record, templates: dict[str, tuple[str, ...]], usual: dict[str, list[str]]
) -> Iterator[str]:
    subject = record.edit.subject
    if subject is None:
        return
    unmoved = [probe.queries[0].prompt for probe in record.probes if probe.kind in NEGATIVE_PROBES]
    real = [text for text in (*unmoved, *record.neighbours) if _is_beside(material, text, subject)]
    yield from islice(real, PER_RECORD)
    if real:
        return
    relation = material.relations.of(record.edit)
    rng = material.rng("same_subject", record)
    for names in (usual.get(relation or "", []), sorted(templates)):
        shuffled = rng.sample(names, len(names))
        built = (text for name in shuffled for text in _put_in(material, subject, templates[name], rng))
        results = list(islice(built, PER_RECORD))
        if results:
            yield from results
            return


def _put_in(material: Material, subject: str, templates: Sequence[str], rng: random.Random) -> Iterator[str]:
    """One template of a relation with the subject in it, where one surely asks for no edited fact; of an edit's own
    prompt, of which fitting may have seen just this, only where there is no other."""
    telling = [template for template in templates if topics_of(template) and template.count("{}") == 1]
    for template in sorted(rng.sample(telling, len(telling)), key=material.fitted.__contains__):
        text = template.replace("{}", subject)
        if not material.edited.may_ask(text, material.relations.asked_by(template)):
            yield text
            return


def _is_beside(material: Material, text: str, subject: str) -> bool:
    """The data says that another relation is asked, which is believed unless the wording is an edited one's."""
    template = template_of(text, subject)
    if template is None or material.edited.is_edited(text):
        return False
    relation = material.relations.of_template(template)
    facts = material.edited.facts_of(subject)
    return all(
        (relation is None or relation != fact.relation) and not topics_of(template) <= fact.topics for fact in facts
    )


def _subjects(material: Material) -> dict[str, list[str]]:
    """Relation -> subjects that the data asks it of, in records and in neighbours."""
    results: dict[str, list[str]] = defaultdict(list)
    for record in (*material.records, *material.pool):
        relation = material.relations.of(record.edit)
        if relation is None or record.edit.subject is None:
            continue
        results[relation].append(record.edit.subject)
        named = (material.relations.subject_in(text, relation) for text in record.neighbours)
        results[relation] += [subject for subject in named if subject is not None]
    return results


def _usual_company(material: Material) -> dict[str, list[str]]:
    """Relation -> others that the data asks of some of the same subjects, without those of which it hardly ever does.

    They are what makes sense to ask of a subject: a person has no capital.
    """
    of_subject: dict[str, set[str]] = defaultdict(set)
    for relation, subjects in _subjects(material).items():
        for subject in subjects:
            of_subject[normal(subject)].add(relation)
    together: dict[str, Counter[str]] = defaultdict(Counter)
    for relations in of_subject.values():
        for relation in relations:
            together[relation].update(relations - {relation})
    return {
        relation: sorted(other for other, count in counts.items() if count >= COMPANY * max(counts.values()))
        for relation, counts in together.items()
        if counts
    }


def _near_duplicates(material: Material, record: Record, of_relation: dict[str, Names]) -> Iterator[str]:
    subject, relation = record.edit.subject, material.relations.asked_relation(record.edit, record.paraphrases)
    if subject is None or relation.relation is None:
        return
    names = of_relation[relation.relation]
    texts = (record.edit.prompt.replace(subject, name) for name in names.nearest(subject))
    yield from islice((text for text in texts if _is_other(material, text, record, relation)), 1)


def negative_drafts(material: Material) -> list[Draft]:
    """All negative classes, in the order of the report."""
    others, usual = _by_relation(material, material.pool), _usual_company(material)
    templates = {name: material.relations.templates(name) for name in material.relations.names}
    of_relation = {relation: Names(subjects) for relation, subjects in _subjects(material).items()}
    room = min(LONG, 3 * material.encoder.context // 4)
    same_relation = Draft(
        name="same_relation",
        about="What was edited, asked of other subjects: neighbours from the data in a wording of the edit's relation, "
        "or where a record has none, prompts of records that were not edited and have the same relation.",
        sources=[(record.edit.id, tuple(_same_relation(material, record, others))) for record in material.records],
        why_empty="no record has a neighbour of its own relation, and no record that was not edited shares one",
    )
    return [
        Draft(
            name="generic",
            about="Everyday questions and unfinished statements that name no edited subject.",
            sources=[(None, [question]) for question in material.questions],
            why_empty=NO_QUESTIONS,
        ),
        same_relation,
        Draft(
            name="same_subject",
            about="Something else about the edited subject: questions from the data, or else prompts of other "
            "relations, those that it asks of like subjects where it shows which, with this subject put in. Relations "
            "that share a wording or a matter with an edit of the subject are left out.",
            sources=[(r.edit.id, _same_subject(material, r, templates, usual)) for r in material.records],
            why_empty="no record has a subject, or no other relation is surely apart from the edited one",
        ),
        Draft(
            name="near_duplicate",
            about="The edited prompt with its subject replaced by the other subject of the relation, in records or "
            "neighbours, that shares most of its runs of three letters.",
            sources=[(record.edit.id, _near_duplicates(material, record, of_relation)) for record in material.records],
            why_empty="no record has a subject, or no other name is near one",
        ),
        Draft(
            name="running_text",
            about=f"Passages of running text that name no edited subject, at most {material.max_tokens} tokens.",
            sources=[(None, pieces) for pieces in _passages(material)],
            why_empty="no running text is left that names no edited subject",
            unit="token",
        ),
        Draft(
            name="long_context",
            about=f"Running text of up to {room} tokens that names the edited subject in a sentence which says nothing "
            f"about it, and ends with a generic question; at most {material.max_tokens} tokens in all.",
            sources=_documents(material, room),
            why_empty="no record has a subject, no running text or no question is left, or nothing fits the context",
            unit="token",
        ),
        _chat(material, same_relation),
        _multi_turn(material),
    ]


def _chat(material: Material, relation: Draft) -> Draft:
    """Half of it generic questions, half prompts of the edited relations, or more of one where there are few of the
    other."""
    talk = material.conversation
    generic = [talk.text(question) for question in material.questions]
    related = choose(
        replace(relation, sources=[(record, map(talk.text, texts)) for record, texts in relation.sources]),
        cap=max(material.per_class // 2, material.per_class - len(generic)),
        accept=material.fits,
    )
    sources: list[Source] = [(None, [text]) for text in generic[: material.per_class - len(related)]]
    sources += [(relation.sources[place][0], [text]) for text, place in related]
    return Draft(
        name="chat",
        about=f"Generic questions, and the prompts of same_relation, as a user's turn: {talk.about}.",
        sources=sources,
        why_empty="no generic question or neighbour fits the context in this form",
    )


def _multi_turn(material: Material) -> Draft:
    talk = material.conversation

    def form(record: Record) -> Iterator[str]:
        rng = material.rng("multi_turn", record)
        for question in rng.sample(material.questions, min(3, len(material.questions))):
            yield talk.text(record.edit.prompt, record.edit.target, question)

    return Draft(
        name="multi_turn",
        about=f"A turn with the edited prompt and its target as the answer, then a generic question: {talk.about}. "
        "Only the last token counts.",
        sources=material.first_that_fit(form),
        why_empty=f"{NO_QUESTIONS}, or none fits the context behind another turn",
    )
