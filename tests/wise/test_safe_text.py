"""Text that leaves the process holds no secret and no control character, and JSON stays in its line."""

from __future__ import annotations

import json
import unicodedata

import pytest

from wise.safe_text import escaped, json_line, redacted


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("postgresql://anna:hunter2@db:5432/wise", "postgresql://***@db:5432/wise"),
        ("postgresql://anna:hun/ter2@db/wise", "postgresql://***@db/wise"),
        ("postgresql://anna:hun@ter2@db/wise", "postgresql://***@db/wise"),
        ("postgresql:///wise?user=anna&password=hunter2", "postgresql:///wise?***"),
        ("https://hunter2@host/x", "https://***@host/x"),
        ("https://host/x?access_token=hunter2: HTTP Error 404", "https://host/x?*** HTTP Error 404"),
        ("https://host/x#hunter2", "https://host/x?***"),
        ("'https://host/x?sig=hunter2' is", "'https://host/x?***' is"),
        ("host=db password='hunter 2' user=anna", "host=db password=*** user=anna"),
        ("{'password': 'hunter2', 'user': 'anna'}", "{'password': ***, 'user': 'anna'}"),
        ("api_key=hunter2&x=1", "api_key=***&x=1"),
        ("Authorization: Bearer hunter2hunter2", "Authorization: Bearer ***"),
        ("authorization: Basic YW5uYTpodW50ZXIy", "authorization: Basic ***"),
    ],
)
def test_a_secret_is_left_out_and_the_rest_stays(given: str, kept: str) -> None:
    assert redacted(given) == kept and "hun" not in redacted(given)
    assert redacted(redacted(given)) == kept


@pytest.mark.parametrize(
    "text",
    ["The capital of France is", "http://127.0.0.1:8000/v1", "http://[::1]:8000/console", "https://host:80/@user/x",
     "max_tokens=16, tokens=/etc/wise/tokens", "send the header 'Authorization: Bearer TOKEN'", "a@b.c: what? #1"],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


def test_no_character_that_steers_a_terminal_is_left() -> None:
    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
    shown = {char: escaped(char) for char in every}
    steering = {char for char in every if unicodedata.category(char) == "Cc"} - {"\t", "\n"}
    turning = {char for char in every if unicodedata.bidirectional(char) in ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI",
                                                                             "RLI", "FSI", "PDI")}
    assert len(steering) == 63 and len(turning) == 9
    for char in steering | turning | {"\u2028", "\u2029", "\u200b", "\ufeff", "\U000e0041"}:
        assert shown[char] != char and shown[char].isascii()
    assert shown["\x1b"] == r"\x1b" and shown["\u202e"] == r"\u202e"
    assert [shown[char] for char in "a\n\té日\u05d0\U0001f600"] == list("a\n\té日\u05d0\U0001f600")
    assert sum(one != char for char, one in shown.items()) < 300


def test_json_is_exact_and_one_line_for_whoever_splits_it() -> None:
    value = {"a": "".join(map(chr, range(0x300))) + "\u2028\u2029\u202e\U000e0041é", "b": [1.5, None]}
    line = json_line(value)
    assert json.loads(line) == value
    assert len(line.splitlines()) == 1 and escaped(line) == line
    assert len(json.dumps(value, ensure_ascii=False).splitlines()) > 1  # what it would be otherwise
    assert "é" in line
