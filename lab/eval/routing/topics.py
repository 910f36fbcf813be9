"""Normalises texts for comparison, and finds the topics that their words belong to.

The rows of topics are English and were drawn up by reading the templates of CounterFact, zsRE, KnowEdit and MQuAKE.
They are coarse on purpose: two questions that share a row are not taken to be different, and one prompt is lost.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"”’)])\s+")
_ABBREVIATED = re.compile(r"\b(?:[A-Z]|Mrs?|Ms|Drs?|Prof|St|Sgt|Lt|Col|Gen|Capt|Rev|Hon|Sen|Gov|No|vs|Vol)\.$")
_OPENING = 3

Words = tuple[str, ...]


def normal(text: str) -> str:
    """`text` without accents, case, runs of white space and what closes a sentence.

    >>> normal("Who  was\\nÉlisée Reclus?")
    'who was elisee reclus'
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " ".join(plain.casefold().split()).rstrip(" .,;:!?")


def words(text: str) -> Words:
    """The words of the normal form of a text, without any marks."""
    return tuple(_WORD.findall(normal(text)))


def sentences(text: str) -> list[str]:
    """A running text cut behind full stops, question and exclamation marks, but not behind a title or an initial."""
    results: list[str] = []
    for part in filter(None, _SENTENCE_END.split(text.strip())):
        if results and _ABBREVIATED.search(results[-1]):
            results[-1] += f" {part}"
        else:
            results.append(part)
    return results


class Phrases:
    """Finds which of many phrases stand in a text, word by word."""

    def __init__(self, phrases: Iterable[Words]) -> None:
        self._by_opening: dict[Words, list[Words]] = defaultdict(list)
        for phrase in dict.fromkeys(phrases):
            if phrase:
                self._by_opening[phrase[:_OPENING]].append(phrase)

    def within(self, text: str) -> list[Words]:
        text_words = words(text)
        results: dict[Words, None] = {}
        for start in range(len(text_words)):
            for length in range(1, _OPENING + 1):
                for phrase in self._by_opening.get(text_words[start : start + length], ()):
                    if text_words[start : start + len(phrase)] == phrase:
                        results[phrase] = None
        return list(results)


# Words that ask nothing by themselves, so that sharing one of them means nothing.
_EMPTY = frozenset(
    "a an the of in on at to for by from with as and or that this it its he she they his her their him them who whom "
    "whose what which when how why is are was were be been being am do does did has have had having can could would "
    "will may might must name names named called known people person thing things kind type sort one ones s t there "
    "so such into about during over under than then also not no very most some any all you your we our if part "
    "holds hold held belong belongs belonged associated related".split()
)

# A word of a row may ask for the same as any other word of it.
_TOPICS = tuple(
    frozenset(row.split())
    for row in (
        "father dad daddy mother mom mum parent parents child children son sons daughter daughters kid kids offspring",
        "wife husband spouse married marry marriage partner wed",
        "brother brothers sister sisters sibling siblings",
        "born birth birthplace birthday birthdate native originally hometown",
        "died die dies death dead passed perished killed buried succumbed expired life lost deathplace",
        "occupation profession job career work works worked working employed employer employment employ position role "
        "office title field area domain expertise specialty specializes services living post",
        "language languages tongue speak speaks spoke spoken speaker understand writes wrote written writing",
        "located location place places where situated found state city town village country nation region continent "
        "district county province headquarters headquarter headquartered based base lies area site municipality "
        "lived live lives within capital twin navigating",
        "country nation national nationality citizen citizenship origin originated originates originate "
        "originally ethnic ethnicity native created formed founded developed formulated comes came",
        "year years date day time start started begin began beginning end ended founded formed established "
        "released release debuted premiered first aired launched inception dissolved creation since",
        "sex gender male female",
        "team club teams play plays played playing player sport position league instrument performs performing genre "
        "music professional squad football",
        "award awards prize honor honour medal won win received recipient nominated",
        "published publisher publishes publish released release network channel aired broadcast debuted premiered "
        "label premieres debut premiere originally record records",
        "manufacturer manufactured made maker makes make produced producer production product company built builder "
        "build created creator creates create developed developer develops designed designer owned owner owns own "
        "responsible constructed architect firm business corporation",
        "studied study attended attend school university college educated education alma went student degree graduated",
        "starred star stars cast actor actors actress featured featuring film members member appear appeared appears",
        "author writer wrote written writes composed composer lyrics book novel artist painter painted",
        "member members organization organisation affiliated affiliation religion religious party political faith "
        "follows follower group belongs league",
        "voice vocal range singing sing sings tone",
        "family genus species order taxon class rank parent",
        "conflict war battle fought army military branch served serve unit rank",
        "material surface constructed",
        "after honor honour eponym namesake",
        "series sequel franchise season prequel follows followed preceded succeeded successor predecessor next "
        "previous",
        "director directed directs screenwriter producer produced",
        "character characters fictional universe",
        "disease illness condition cause caused",
        "software system operating platform programming",
        "leader president head chief ceo chairman chairperson minister king queen mayor governor chairwoman",
        "discovered discoverer discovery invented inventor found",
    )
)

_ROW = "#"
_TOPICS_OF: dict[str, frozenset[int]] = {
    word: frozenset(place for place, row in enumerate(_TOPICS) if word in row) for row in _TOPICS for word in row
}


def topics_of(text: str) -> frozenset[str]:
    """What a text is about: its words that are not empty, and the rows of like words that they stand in."""
    results = {word for word in words(text.replace("{}", " ")) if word not in _EMPTY}
    rows = {f"{_ROW}{place}" for word in results for place in _TOPICS_OF.get(word, ())}
    return frozenset(results | rows)
