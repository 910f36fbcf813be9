"""What a plain text asks, and whether an answer is expected at its end, is read off the text alone."""

from __future__ import annotations

import pytest

from wise.router.sentences import expects, is_question, names_subject, passage, refers_back
from wise.router.subjects import SubjectIndex


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The capital of France is", "The capital of France is"),
        ("I like tea. The capital of France is", "The capital of France is"),
        ("France is nice. Its capital is", "France is nice. Its capital is"),
        ("France is nice. The capital of Spain is", "The capital of Spain is"),  # names another subject
        ("France is nice. The answer is", "The answer is"),  # says nothing of what was named
        ("What is the capital of France?", "What is the capital of France?"),
        ("Question: What of France? Answer:", "Question: What of France? Answer:"),
        ("Question: What of France? Answer: the", "Question: What of France? Answer: the"),
        ("What of France? Note: The end", "Note: The end"),
        ("The U.S. and France. J. R. of France is", "J. R. of France is"),
        ("It is in France. Answer:", "It is in France. Answer:"),
        ("It is in France.\n\nThe", "The"),
        ("It is in France. There it", "It is in France. There it"),
        ("Who directed Viva France! in the end?", "Who directed Viva France! in the end?"),  # the name's own mark
        ("Viva France! Who said so?", "Who said so?"),
        ("It is great! in the end", "in the end"),
        ("In the end France... goes on", "In the end France... goes on"),
        ("I had tea. Tea Co. Stores, whose seat is in", "Tea Co. Stores, whose seat is in"),
        ("I had tea. Has Tea Co. Stores any?", "Has Tea Co. Stores any?"),
        ("I had Tea Co.\nStores are in", "Stores are in"),
        ("It is of a Co. Stores are in", "Stores are in"),
        ("The capital of France is Paris.", None),
        ("", None),
        ("法国的首都是", "法国的首都是"),
    ],
)
def test_what_a_plain_text_says_last(text: str, said: str | None) -> None:
    assert passage(text, SubjectIndex([("France", 0), ("Tea Co. Stores", 1)]).mentions) == said


def test_a_question_ends_with_its_mark() -> None:
    assert is_question("Is it?") and is_question('He said "is it?"') and not is_question("It is.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The capital of Spain is", True),
        ("Spain lies in", True),
        ("Everybody in Spain speaks", True),  # as some edit's prompt ends
        ("Spain's seat of power,", True),
        ("Spain's seat of power", None),  # that prompt has a comma
        ("Everybody in Spain speaks,", False),
        ("I lived in Spain,", False),
        ("I lived in Spain and", False),
        ("In Spain the capital", None),
        ("", None),
    ],
)
def test_whether_a_sentence_expects_its_answer(text: str, expected: bool | None) -> None:
    assert expects(text, {"speaks", "power,"}) is expected


@pytest.mark.parametrize(
    ("text", "back"),
    [
        ("What is its capital?", True),
        ("And the capital?", True),
        ("Which language do most people there speak?", True),
        ("Thanks. What is its capital?", True),
        ("Ok, great! And who leads it?", True),
        ("What is the capital of France?", False),  # another subject, whether it is edited or not
        ("Which of all languages do most people speak?", False),
    ],
)
def test_whether_a_question_is_about_what_was_named_before(text: str, back: bool) -> None:
    assert refers_back(text) is back


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("And Spain?", True),
        ("Thanks! Now I'm thinking of Spain.", True),
        ("And gullwing-03?", True),
        ("Thanks!", False),
        ("Interesting. I'm curious.\nDescribe it, please", False),
        ("What is its capital?", False),
    ],
)
def test_whether_a_turn_names_a_subject_edited_or_not(text: str, named: bool) -> None:
    assert names_subject(text) is named
