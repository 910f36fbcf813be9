"""Names are found by their words, however they are written, and nothing else is."""

from __future__ import annotations

import unicodedata

import pytest

from wise.edits import Edit
from wise.router.subjects import PLACEHOLDER, SubjectIndex, find_subject, masked, names_another, names_of, words

INDEX = SubjectIndex(
    (name, n) for n, name in enumerate(("France", "the United States", "Thornapple & Daughters", "东京", "C++"))
)


@pytest.mark.parametrize(
    "text",
    [
        "What of France?", "what of france", "FRANCE'S capital", "France’s flag", "(France)", "two Frances",
        "¿Francé?", "Fra\u0301nce\u0301!",
    ],
)
def test_a_name_is_found_in_any_case_possessive_plural_and_accent(text: str) -> None:
    [mention] = INDEX.mentions(text)
    assert INDEX.owners(mention) == [0] and not unicodedata.combining((text + " ")[mention.end])


@pytest.mark.parametrize("text", ["the French", "Francesca", "San Francisco", "", "United Kingdom", "thornapple", "C"])
def test_other_words_are_not_taken_for_it(text: str) -> None:
    assert INDEX.mentions(text) == []


def test_articles_symbols_and_scripts_without_spaces() -> None:
    assert [INDEX.owners(m)[0] for m in INDEX.mentions("In United States and Thornapple & Daughters")] == [1, 2]
    assert [INDEX.owners(m)[0] for m in INDEX.mentions("我住在东京。")] == [3]
    assert [INDEX.owners(m)[0] for m in INDEX.mentions("What is C++?")] == [4]


def test_the_longest_name_is_masked() -> None:
    index = SubjectIndex([("Thornapple", 0), ("Thornapple & Daughters", 0)])
    text = "Who runs Thornapple & Daughters, and who Thornapple's wifi?"
    assert masked(text, index.mentions(text)) == f"Who runs {PLACEHOLDER}, and who {PLACEHOLDER}'s wifi?"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Who leads New York City?", [2]),
        ("Who leads New York?", [1]),
        ("Is New York City larger than York and New York?", [2, 0, 1]),
        ("new York, York City", [1, 3]),
        ("Is it in New York City Hall?", [2, 4]),  # neither is a part of the other
    ],
)
def test_a_name_within_a_longer_one_is_not_named(text: str, found: list[int]) -> None:
    names = ("York", "New York", "New York City", "York City", "City Hall")
    index = SubjectIndex((name, n) for n, name in enumerate(names))
    assert [owner for mention in index.mentions(text) for owner in index.owners(mention)] == found


def test_the_s_of_a_possessive_is_no_word_and_any_other_s_is() -> None:
    index = SubjectIndex([("Tesla Model S", 0), ("Levi’s", 1)])
    found = index.mentions("Is Levi’s Tesla Model S's price that of the Tesla Model 3?")
    assert [index.owners(mention)[0] for mention in found] == [1, 0]


COMMON = SubjectIndex(
    (name, n) for n, name in enumerate(("It", "the WHO", "US", "The Who", "Her", "It Follows", "her"))
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Who directed It?", [0]),
        ('Who directed "It"?', [0]),
        ("Who directed it?", []),
        ("I saw Jaws. It was good. Who directed it?", []),
        ("I saw Jaws\nIt was good", []),
        ("Who leads the WHO in the US?", [1, 2]),
        ("WHO leads", [1]),
        ("Who can tell us?", []),
        ("Who sang for The Who?", [3]),
        ("Who directed Her, and who directed her?", [4, 6]),
        ("Their mother saw It Follows", [5]),
        ("who directed it follows", [5]),
    ],
)
def test_a_name_that_is_a_common_word_is_one_only_as_it_is_written(text: str, found: list[int]) -> None:
    assert [owner for mention in COMMON.mentions(text) for owner in COMMON.owners(mention)] == found


@pytest.mark.parametrize("text", ["in Italy", "Usher in USher", "in New Yorkshire", "in WHOle It’s", "The Whole"])
def test_a_text_that_is_cut_names_nothing_that_the_whole_does_not_show(text: str) -> None:
    for index in (COMMON, SubjectIndex([("New York", 0), ("us", 1), ("New", 2)])):
        cut = any(index.mentions(text[:end]) for end in range(len(text)))
        assert not cut or index.mentions(text) or index.cut_among(words(text))


def test_a_mention_says_where_it_stands() -> None:
    text = "What is the capital of France?"
    (mention,) = INDEX.mentions(text)
    assert text[mention.start : mention.end] == "France"


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("What is the capital of France?", "France"),
        ("In which country is the Taj Mahal?", "Taj Mahal"),
        ("The mother tongue of Marie Curie is", "Marie Curie"),
        ("Marie Curie's mother tongue is", "Marie Curie"),
        ("What is the guest wifi password at Thornapple & Daughters?", "Thornapple & Daughters"),
        ('Who wrote "a quiet year"?', "a quiet year"),
        ('What does str.split("  ") do?', None),
        ('Did "--" or "a quiet year" come first?', "a quiet year"),
        ("Which port does gullwing-03 listen on?", "gullwing-03"),
        ("How many days are in a fortnight?", None),
        ("what time does the canteen open", None),
        ("I'm asking how long a fortnight is", None),
        ("Hess was born in", "Hess"),
        ("Who'd Josephine marry?", "Josephine"),
        ("I have a pen pal in Nigeria. What is the capital there?", "Nigeria"),
        ("What is the country of origin of Dr. No?", "Dr. No"),
        ("The U.S. of America was founded in", "U.S. of America"),
        ("Great. What is the capital?", None),
        ("Great Britain lies in", "Great Britain"),
    ],
)
def test_the_subject_of_a_prompt_is_found_where_it_shows(prompt: str, subject: str | None) -> None:
    assert find_subject(prompt) == subject


def test_a_subject_that_is_given_counts() -> None:
    edit = Edit(prompt="Who wrote Hamlet in London?", target="Marlowe", subject="London", aliases=("the City",))
    assert names_of(edit) == ("London", "the City")
    assert names_of(Edit(prompt="How long is a fortnight?", target="ten days")) == ()


@pytest.mark.parametrize(
    ("names", "text", "another"),
    [
        (["Calder Library"], "When does the Mossbank Library open?", True),
        (["Windows 8"], "When does Windows 10 open?", True),
        (["HD 34626"], "When does HD 53680 open?", True),
        (["Calder Library"], "When does Calder library open?", False),
        (["Calder Library"], "When does Calder open?", False),
        (["Calder Library"], "When does the library open?", False),
        (["Calder Library"], "When does Caldre Library open?", False),
        (["Calder Library"], "Does Calder Library open on Sundays?", False),
        (["John F. Kennedy"], "When does JFK open?", False),
        (["JFK"], "When does John Fitzgerald Kennedy open?", False),
        (["JFK", "Kennedy Airport"], "When does Kennedy open?", False),
        (["the payments team"], "When does the mapping team open?", False),  # neither is written as a name
        (["Calder Library"], "Tell me when it opens.", False),
        (["东京"], "大阪什么时候开门？", False),
    ],
)
def test_another_name_in_place_of_the_subject_is_seen(names: list[str], text: str, another: bool) -> None:
    assert names_another(text, f"When does {names[0]} open?", names) is another
