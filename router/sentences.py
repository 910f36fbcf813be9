"""Sentences of plain text: what a text asks or leaves unfinished at its end, and whether an answer is expected there.

Every function here depends on the text up to its end alone, so it does not matter how a sequence is cut into forward
passes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence

from wise.router.subjects import Mention, find_subject, words

FINAL_MARKS = ".!。！"
"""Marks that finish a sentence which asks nothing."""
QUESTION_MARKS = "?？"
CLOSING = "\"'”’)]"
"""Quotes and brackets that may stand behind the last mark of a sentence."""
_CLOSED = rf"[{re.escape(CLOSING)}]*"
_SENTENCE_END = re.compile(
    rf"(?<=[{FINAL_MARKS}{QUESTION_MARKS}])(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St)\.)(?<!\bMrs\.){_CLOSED}\s+|(?<=[。！？])|\n+"
)
"""Ends of sentences; not initials and a few titles."""
_SENTENCE_BEGIN = re.compile(r"(?:^|\n|[.!?:])\W*\w")
"""The first letter of a sentence, and what stands before it."""
_QUESTION = re.compile(rf"[{QUESTION_MARKS}]{_CLOSED}\s*$")
_LABEL = re.compile(r"^\W*\w+(?:\s+\w+)?\s*[:：](?:\s*(?:the|an?))?\s*$", re.IGNORECASE)
"""A label before an answer, such as "Answer:" or "Answer: the"."""
_FINISHED = re.compile(rf"[{FINAL_MARKS}]{_CLOSED}\s*$")
_MARKS = ",;(–—-"
"""Marks within a sentence."""
_UNFINISHED = re.compile(
    rf"(?:[{_MARKS}]|\b(?:and|or|but|who|whose|which|that|because|while|also|not))\s*$", re.IGNORECASE
)
"""Ends of a text after which no answer begins, except where an edit's own sentence ends so."""
LEADING = frozenset(
    "is are was were be been of in by to called as on at from with for a an the named than under after since until "
    "into within about".split()
)
"""Words after which a sentence expects its answer."""

REFERRING = frozenset("it its he him his she her hers they them their theirs there this that these those".split())
SHORT = 4
"""A question of so few words may refer to an earlier subject without any of these: "And the capital?"."""


def passage(text: str, mentions: Callable[[str], Sequence[Mention]]) -> str | None:
    """What plain text says last, to be answered or completed at its end; None where nothing is.

    It is the unfinished last sentence, or the question just asked. The sentence before it is included if the last one
    names no edited subject and refers back by a word such as "its", or is only a label.

    mentions: the edited subjects that a text names. A mark in one, or right behind it, may be part of its name.
    """
    parts = list(sentences(text, mentions(text)))
    if not parts or is_finished(text):
        return None
    last = parts[-1]
    if len(parts) > 1 and not mentions(last) and (_LABEL.search(last) or refers_back(last, short=0)):
        last = f"{parts[-2].rstrip()} {last}"
    return last.strip() or None


def expects(text: str, ends: Collection[str]) -> bool | None:
    """Whether an unfinished sentence expects an answer at its end; None if that is not clear.

    ends: how the edits' own sentences end (`ending`); behind these one is expected as behind `LEADING`.
    """
    last = ending(text)
    if last in ends:
        return True
    if _UNFINISHED.search(text):
        return False
    return True if last in LEADING else None


def ending(text: str) -> str:
    """The last word, and a mark such as a comma behind it."""
    mark = text.rstrip()[-1:]
    return last_word(text) + (mark if mark and mark in _MARKS else "")


def last_word(text: str) -> str:
    """In lower case; empty if there is no word."""
    while text := text.rstrip():  # no word goes across a space
        head, _, tail = text.rpartition(" ")
        if tail_words := words(tail):
            return tail_words[-1].text
        text = head
    return ""


def refers_back(text: str, short: int = SHORT) -> bool:
    """The text may be about an earlier subject: it names none, and has a word such as "it" or very few words."""
    lower = [word.text for word in words(text)]
    return find_subject(text) is None and (len(lower) <= short or not REFERRING.isdisjoint(lower))


def names_subject(text: str) -> bool:
    """Whether a text names a subject, edited or not. A capital that begins a sentence does not show one: "Thanks!"."""
    return find_subject(_SENTENCE_BEGIN.sub(lambda begin: begin.group().lower(), text)) is not None


def is_finished(text: str) -> bool:
    """Whether a text ends with a full stop or an exclamation mark, quotes and brackets behind it or not."""
    return bool(_FINISHED.search(text))


def last_sentence(text: str) -> str:
    """The last of several sentences, which is the question after a preface; a single sentence is returned as it is."""
    parts = list(sentences(text))
    return parts[-1].strip() if len(parts) > 1 else text


def is_question(text: str) -> bool:
    """Whether a text ends with a question mark."""
    return bool(_QUESTION.search(text))


def sentences(text: str, names: Sequence[Mention] = ()) -> Iterator[str]:
    """The sentences of a text with what stands behind each.

    names: a mark within one ends no sentence, and neither does a name's own mark before a small letter."""
    start = 0
    for mark in _SENTENCE_END.finditer(text.rstrip()):
        at = mark.start()
        within = "\n" not in mark.group() and any(name.start < at < name.end for name in names)
        behind = any(name.end <= at and not text[name.end : at].strip(".!?") for name in names)
        if within or (behind and text[mark.end()].islower()):
            continue
        yield text[start : mark.end()]
        start = mark.end()
    if text[start:].strip():
        yield text[start:]
