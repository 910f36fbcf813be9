"""Running text, of which every token must leave the memory silent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wise.edits import Record
from wise.lab.eval.routing.drafts import Draft, Source, evenly
from wise.lab.eval.routing.material import Material

LONG = 256
"""Tokens of a long context, where three quarters of what the base sees are more than that."""
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


def running_text_draft(material: Material) -> Draft:
    """Passages in an order drawn by the seed, cut where they are longer than the context, until the tokens are used."""
    return Draft(
        name="running_text",
        about=f"Passages of running text that name no edited subject, at most {material.max_tokens} tokens.",
        sources=[(None, pieces) for pieces in _passages(material)],
        why_empty="no running text is left that names no edited subject",
        unit="token",
    )


def _passages(material: Material) -> Iterator[list[str]]:
    """The pieces of each text."""
    left = material.max_tokens
    for text in material.texts:
        kept = []
        for piece in _pieces(material, text):
            length = material.length(piece)
            if length > left:
                piece, length = _beginning(material, piece, left), left
            kept += [piece] if piece else []
            left -= length
            if left <= 0:
                break
        if kept:
            yield kept
        if left <= 0:
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


def long_context_draft(material: Material) -> Draft:
    """The documents of records that lie evenly over all, until the tokens are used."""
    room = min(LONG, 3 * material.encoder.context // 4)
    return Draft(
        name="long_context",
        about=f"Running text of up to {room} tokens that names the edited subject in a sentence which says nothing "
        f"about it, and ends with a generic question; at most {material.max_tokens} tokens in all.",
        sources=_documents(material, room),
        why_empty="no record has a subject, no running text or no question is left, or nothing fits the context",
        unit="token",
    )


def _documents(material: Material, room: int) -> list[Source]:
    fillers = material.sentences()
    if not fillers or not material.questions:
        return []
    lengths = [material.length(sentence) for sentence in fillers]
    named = [place for place, record in enumerate(material.records) if record.edit.subject is not None]
    found: dict[int, str] = {}
    left = material.max_tokens
    for place in (named[i] for i in evenly(range(len(named)))):
        text = _document(material, material.records[place], fillers, lengths, room)
        if text is None:
            continue
        left -= material.length(text)
        if left < 0:
            break
        found[place] = text
    return [(material.records[place].edit.id, [text]) for place, text in sorted(found.items())]


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
