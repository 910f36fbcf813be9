"""Subjects: an index that finds the edits whose subject a text names.

Texts are compared as words in lower case, so tokenization, case, punctuation and the form of quotes do not matter, and
a possessive or a plural counts as the name. A name that is a common word, such as "It" or "US", counts only as it is
written. Scripts without spaces are compared character by character. The cost of a look-up does not depend on the number
of names.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Generic, TypeVar

from wise.edits import Edit

_WORD = re.compile(
    r"""
    [぀-ヿ㐀-䶿一-鿿豈-﫿가-힯฀-๿]  # a character of a script that puts no spaces between words
    | (?!(?<=['’])s\b)  # not the s of a possessive
      [^\W_]+
      (?: ['’](?!s\b)[^\W_]+  # as in O'Brien
        | [\u0300-\u036f]+[^\W_]* )*  # accents that are characters of their own
    | [+#&@$€£%]+  # as in C++
    """,
    re.IGNORECASE | re.VERBOSE,
)
PLACEHOLDER = "this"
"""Replaces the subject in a question before its relation is read, since a name says nothing about the relation."""
ARTICLES = frozenset({"the", "a", "an"})
SPELLING = 0.7
"""How alike two spellings of a word are at least (the ratio of `SequenceMatcher`)."""
Owner = TypeVar("Owner", bound=Hashable)
"""What a name belongs to: a number, or an id."""


@dataclass(frozen=True)
class Word:
    """A normalised word of a text and its characters."""

    text: str
    spelling: str
    """The word as it is written; a common word that begins a sentence, without the capital."""
    start: int
    end: int


def words(text: str) -> list[Word]:
    """The words of a text, in lower case and without a possessive."""
    result = []
    for match in _WORD.finditer(text):
        spelling, start = match.group(), match.start()
        folded = _folded(spelling)
        if folded in _COMMON and spelling.istitle() and _begins_sentence(text, start):
            spelling = folded
        result.append(Word(folded, spelling, start, match.end()))
    return result


def beginnings(word: Word) -> Iterator[str]:
    """What is left of a word in a text that ends within it, in lower case and as it is written."""
    return (text[:end] for text in {word.text, word.spelling} for end in range(1, len(text)))


def name_key(name: str) -> tuple[str, ...]:
    """The normalised words of a name, without a leading article."""
    if name.isascii():  # most are, and 100,000 of them are read where a memory is loaded
        key = tuple(_WORD.findall(name.lower()))
    else:
        key = tuple(word.text for word in words(name))
    return key[1:] if len(key) > 1 and key[0] in ARTICLES else key


def variants(name: str) -> Iterator[tuple[str, ...]]:
    """Ways of writing a name: itself, and the plural of its last word; a common word only as it is written."""
    key = name_key(name)
    if not key:
        return
    if len(key) == 1 and key[0] in _COMMON:
        yield (_WORD.findall(name)[-1],)
        return
    yield key
    last = key[-1]
    if len(last) > 2 and last.isalpha():
        ending = "es" if last.endswith(("s", "x", "z", "ch", "sh")) else "s"
        yield (*key[:-1], last + ending)


@dataclass(frozen=True)
class Mention:
    """An edited subject that a text names."""

    name: tuple[str, ...]
    start: int
    end: int
    """Characters of the text."""


def masked(text: str, mentions: Iterable[Mention]) -> str:
    """A text with `PLACEHOLDER` for these mentions; of overlapping ones the longest is replaced."""
    parts, behind = list[str](), 0
    for mention in sorted(mentions, key=lambda m: (m.start, -m.end)):
        if mention.start >= behind:
            parts += text[behind : mention.start], PLACEHOLDER
            behind = mention.end
    return "".join((*parts, text[behind:]))


def without_names(text: str, names: Iterable[str]) -> str:
    """A text with `PLACEHOLDER` for each of these names."""
    return masked(text, SubjectIndex((name, 0) for name in names).mentions(text))


def names_of(edit: Edit) -> tuple[str, ...]:
    """The edit's `subject`, or else the one found in its prompt, and its aliases; none without a subject."""
    subject = edit.subject if edit.subject is not None else find_subject(edit.prompt)
    return () if subject is None else (subject, *edit.aliases)


@lru_cache(maxsize=65536)
def find_subject(prompt: str) -> str | None:
    """The likely subject of a prompt: its first quoted words, or else its first run of capitalised words.

    A capital at the beginning of a sentence counts only if the word is not a common one.
    """
    for quoted in _QUOTED.finditer(prompt):
        if name_key(quoted.group(1)):
            return quoted.group(1).strip()
    prompt = _INTERJECTIONS.sub(lambda found: found.group().lower(), prompt)
    for run in _CAPITALS.finditer(prompt):
        text, start = run.group(), run.start()
        if _begins_sentence(prompt, start):
            first, _, rest = text.partition(" ")
            if _CONTRACTION.sub("", first.casefold()) in ORDINARY:
                text = rest.strip()
                nested = _CAPITALS.search(text)
                text = nested.group() if nested else ""
        text = _FULL_STOP.sub("", _CONTRACTION.sub("", text)).strip(" ,;:-")
        if text and text.casefold() not in ORDINARY:
            return text
    identifier = _IDENTIFIER.search(prompt)
    return identifier.group() if identifier else None


_IDENTIFIER = re.compile(r"(?<![\w-])(?=[\w-]*[^\W\d])(?=[\w-]*\d)[\w-]{3,}")
"""A word with letters and digits, as of a server or a part."""
_QUOTED = re.compile(r"[\"“«]([^\"”»]{2,80})[\"”»]")
_CONTRACTION = re.compile(r"['’](?:s|m|re|ve|ll|d)$", re.IGNORECASE)
ORDINARY = frozenset(
    "what which who whom whose when where why how is are was were do does did can could will would should "
    "may might has have had in on at by for from to of with under over into onto during after before "
    "since the a an this that these those my our your his her its their i we you he she it they tell "
    "please name give say remind state list if as and or but not no yes hi hello hey by about between "
    "through there here than then one two three question answer".split()
)
"""Words that name nothing and tell little of what is asked."""
_COMMON = ORDINARY | frozenset("me us him hers them theirs so up down out off all any some".split())
"""Words that stand in texts about anything."""
_INTERJECTIONS = re.compile(
    r"\A(?:\W*(?:thanks(?: a lot)?|thank you|yes|ok|okay|great|cool|perfect|well|sure|right|wow|oh|sorry|so)"
    r"\s*[.,!;…]+)+",
    re.IGNORECASE,
)
"""What a turn may begin with before its question."""
_FULL_STOP = re.compile(r"(?<=\w{4})\.$")
"""Of a sentence, not of an abbreviation."""
_CAPITAL, _REST = "[A-Z0-9À-ÞĀ-Ž]", r"[\w.&+#'’-]*"
_SMALL = r"(?:of|the|and|&|de|da|di|del|der|des|van|von|la|le|el|y|for|on|in)"
_NEW_SENTENCE = (
    rf"(?<=\.)(?<!\b(?:Mr|Dr|St)\.)\s+(?:{'|'.join(sorted(map(str.title, ORDINARY)))})\b(?!\.)"
)
_CAPITALS = re.compile(
    rf"(?<![\w])(?:{_CAPITAL}{_REST}[A-Za-zÀ-ž]{_REST}|[A-ZÀ-Þ])"
    rf"(?:(?!{_NEW_SENTENCE})\s+(?:{_SMALL}\s+){{0,2}}(?:{_CAPITAL}{_REST}))*"
)
"""Capitalised words, with small words between them; not across a full stop with a common word behind it."""


def _begins_sentence(text: str, start: int) -> bool:
    before = text[:start]
    return before.rstrip()[-1:] in ".!?:" or "\n" in before[len(before.rstrip()) :]


class SubjectIndex(Generic[Owner]):
    """Maps names to their owners. Immutable once built."""

    def __init__(self, names: Iterable[tuple[str, Owner]] = ()) -> None:
        """names: pairs of a name and its owner."""
        self._owners: dict[tuple[str, ...], list[Owner]] = {}
        self._lengths: dict[str, tuple[int, ...]] = {}
        self._add(names)

    def changed(self, removed: Iterable[tuple[str, Owner]], added: Iterable[tuple[str, Owner]]) -> SubjectIndex[Owner]:
        """A new index without the pairs `removed` and with the pairs `added`."""
        other: SubjectIndex[Owner] = SubjectIndex()
        # Lengths of names without owners stay; a look-up of them finds nothing.
        other._owners, other._lengths = dict(self._owners), dict(self._lengths)
        for key, owners in _by_words(removed).items():
            remaining = [owner for owner in other._owners.pop(key) if owner not in owners]
            if remaining:
                other._owners[key] = remaining
        other._add(added)
        return other

    def _add(self, names: Iterable[tuple[str, Owner]]) -> None:
        """Never changes a list, since another index may share it."""
        for key, owners in _by_words(names).items():
            self._owners[key] = [*self._owners.get(key, ()), *owners]
            first = _folded(key[0])
            lengths = self._lengths.get(first, ())
            if len(key) not in lengths:
                self._lengths[first] = tuple(sorted((*lengths, len(key)), reverse=True))

    @property
    def ends(self) -> Iterator[str]:
        """The last words of the names."""
        return (_folded(key[-1]) for key in self._owners)

    def mentions(self, text: str) -> list[Mention]:
        """The names that occur in a text, in their order, without those that are a part of a longer one there."""
        return self.among(words(text))

    def among(self, text_words: Sequence[Word]) -> list[Mention]:
        """The same for words."""
        mentions = list[Mention]()
        for place, word in enumerate(text_words):
            for length in self._lengths.get(word.text, ()):
                part = text_words[place : place + length]
                common = length == 1 and word.text in _COMMON
                key = (word.spelling,) if common else tuple(each.text for each in part)
                within = bool(mentions) and part[-1].end <= mentions[-1].end
                if len(key) == length and key in self._owners and not within:
                    mentions.append(Mention(key, word.start, part[-1].end))
        return mentions

    def cut_among(self, text_words: Sequence[Word]) -> bool:
        """Whether a text of these words that ends within one of them would end with a name: "Par" in "Parisian"."""
        for place, word in enumerate(text_words):
            for part in beginnings(word):
                if (part,) in self._owners:
                    return True
            for length in self._lengths.get(word.text, ()):
                *rest, last = text_words[place : place + length]
                key = tuple(each.text for each in rest)
                if len(rest) == length - 1 > 0 and any((*key, part) in self._owners for part in beginnings(last)):
                    return True
        return False

    def owners(self, mention: Mention) -> Sequence[Owner]:
        """The owners of a mentioned name."""
        return self._owners[mention.name]

    def owners_of(self, name: str) -> Sequence[Owner]:
        """The owners of a name."""
        return self._owners.get(next(variants(name), ()), ())


def may_name(texts: Iterable[str], names: Iterable[str]) -> set[int]:
    """A quick prefilter: the places of the texts that contain the longest word of one of these names."""
    longest = {max(key, key=len) for key in map(name_key, names) if key}
    folded = [text.lower() if text.isascii() else _folded(text) for text in texts]  # calls would take the time
    return {place for word in longest for place, text in enumerate(folded) if word in text}


def names_another(text: str, prompt: str, names: Sequence[str]) -> bool:
    """Whether a text has another name in place of the subject of a prompt: "the Mossbank Library", "Windows 10".

    It lacks words of each name of the subject, and has words of a name that the prompt has not. A name that is
    misspelt, shortened or written in initials is not another one.
    """
    text_words, known_words = words(text), {word.text for name in (prompt, *names) for word in words(name)}
    present = {word.text for word in text_words}
    new = [w for w in text_words if w.text not in known_words and _is_of_name(w)]
    new_words = [w.text for w in new if w.text.isdigit() or not _begins_sentence(text, w.start)]
    for name in names:
        parts = words(name)
        lacking = [w.text for w in [*filter(_is_of_name, parts)] or parts if w.text not in present]
        missed = [one for one in lacking if not any(_may_be_one_word(one, other) for other in new_words)]
        others = [one for one in new_words if not any(_may_be_one_word(one, other) for other in lacking)]
        if not missed or not others or _initials(missed) in others or _initials(others) in missed:
            return False
    return True


def _is_of_name(word: Word) -> bool:
    return word.spelling[:1].isupper() or word.spelling[:1].isdigit()


def _may_be_one_word(one: str, other: str) -> bool:
    """Whether two words may be one, shortened or misspelt. Numbers are one or the other."""
    if any(character.isdigit() for character in one + other):
        return one == other
    return one.startswith(other) or other.startswith(one) or SequenceMatcher(None, one, other).ratio() >= SPELLING


def _initials(parts: Sequence[str]) -> str:
    return "".join(part[0] for part in parts)


def _by_words(names: Iterable[tuple[str, Owner]]) -> dict[tuple[str, ...], list[Owner]]:
    groups: dict[tuple[str, ...], list[Owner]] = {}
    for name, owner in names:
        for key in variants(name):
            groups.setdefault(key, []).append(owner)
    return groups


def _folded(word: str) -> str:
    if word.isascii():
        return word.lower()
    word = unicodedata.normalize("NFKD", word).casefold()
    return "".join(c for c in word if not unicodedata.combining(c)).replace("’", "'")
