"""The shipped texts and the files of texts that users give."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest
from repository import shared

from wise.errors import WiseError
from wise.lab.eval.routing.texts import read_texts, shipped_exchanges, shipped_passages, shipped_questions
from wise.lab.eval.routing.topics import Phrases, normal, sentences, words

TEXT = "First line,\nsecond line.\n \n\nAnother paragraph.\n"
PARAGRAPHS = ["First line,\nsecond line.", "Another paragraph."]


def test_what_ships_is_there_and_each_once() -> None:
    questions, passages, exchanges = shipped_questions(), shipped_passages(), shipped_exchanges()
    assert (len(questions), len(passages), len(exchanges)) == (154, 40, 24)
    assert len({normal(text) for text in (*questions, *passages, *(q for q, _ in exchanges))}) == 154 + 40 + 24
    assert all(100 <= len(passage.split()) <= 140 for passage in passages)
    assert all(question.strip() == question and answer.endswith(".") for question, answer in exchanges)
    asked = [question for question in questions if question.endswith("?")]
    assert 60 <= len(asked) <= 100, "questions and unfinished statements, both"


def test_paragraphs_lie_between_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n" + TEXT + "\n")
    assert read_texts(tmp_path / "a.txt") == PARAGRAPHS


@pytest.mark.parametrize(("name", "pack"), [("a.txt.gz", gzip.compress), ("a.txt.xz", lzma.compress)])
def test_packed_files(tmp_path: Path, name: str, pack: object) -> None:
    (tmp_path / name).write_bytes(pack(TEXT.encode()))  # type: ignore[operator]
    assert read_texts(str(tmp_path / name)) == PARAGRAPHS


def test_lines_of_json(tmp_path: Path) -> None:
    rows = [{"text": " One. "}, {"question": "two?", "answer": ["2"]}, {"question": "no", "text": "three"}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    assert read_texts(tmp_path / "a.jsonl") == ["One.", "two?", "three"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}')
    assert read_texts(tmp_path / "a.jsonl") == ["x"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl:2: broken JSON"),
        ("a.jsonl", b'{"text": "x"}\n\n["x"]', r"a\.jsonl:3: list \['x'\] was given, a JSON object was expected"),
        ("a.jsonl", b'{"texts": "x"}', r"a\.jsonl:1: field 'text': missing; fields found: texts"),
        ("a.jsonl", b'{"text": 3}', r"a\.jsonl:1: field 'text': int 3 was given, text was expected"),
        ("a.jsonl", b'{"text": " "}', r"a\.jsonl:1: field 'text': empty"),
        ("a.txt", b"one\ntwo \xff", r"a\.txt:2: not UTF-8"),
        ("a.txt", b"\n \n", r"a\.txt: holds no text"),
        ("a.txt.gz", b"no archive", r"a\.txt\.gz:1: cannot be read on"),
        ("a.txt.xz", lzma.compress(TEXT.encode())[:-8], r"a\.txt\.xz:\d+: cannot be read on"),
        ("a.csv", b"x", r"a\.csv: \.txt or \.jsonl was expected"),
        ("a.csv.gz", b"x", r"a\.csv\.gz: \.txt or \.jsonl was expected"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WiseError, match=problem):
        read_texts(tmp_path / name)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(WiseError, match="no such file"):
        read_texts(tmp_path / "a.txt")
    (tmp_path / "b.txt").mkdir()
    with pytest.raises(WiseError, match="a folder was given"):
        read_texts(tmp_path / "b.txt")


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("wikisplit_tune_valid.jsonl.xz", 10_000),
        ("nq_open_dev.jsonl.gz", 3_610),
        ("wikitext2_valid.txt.xz", 500),
        ("factbook_dev.txt.xz", 229),
    ],
)
def test_published_texts(name: str, least: int) -> None:
    texts = read_texts(shared(f"data/text/{name}"))
    assert len(texts) >= least
    assert all(text.strip() == text and text for text in texts)


# -- texts as they are compared ---------------------------------------------------------------


def test_what_differs_in_writing_alone_is_one_text() -> None:
    assert normal("Who  was\nÉlisée Reclus?") == normal("who was elisee reclus") == "who was elisee reclus"
    assert normal("Who was Reclus") != normal("Who is Reclus")
    assert words("Danielle's dog, 2.") == ("danielle", "s", "dog", "2")


def test_sentences() -> None:
    assert sentences('One. Two is 2.5!\n"Three?" Four') == ["One.", "Two is 2.5!", '"Three?"', "Four"]
    assert sentences("He met Dr. Korn and J. R. Lind. He left.") == ["He met Dr. Korn and J. R. Lind.", "He left."]


def test_phrases_are_found_word_by_word() -> None:
    phrases = [("rome",), ("new", "york"), ("new", "york", "city", "hall"), ("he",)]
    found = Phrases([*phrases, ()])
    texts = ["From Rome to New York.", "the romeo", "new york city hall", "New, York city", "She", "he? HE!", ""]
    for text in texts:
        spoken = " ".join(("", *words(text), ""))
        assert set(found.within(text)) == {phrase for phrase in phrases if f" {' '.join(phrase)} " in spoken}
    assert found.within("to new york and rome") == [("new", "york"), ("rome",)]
