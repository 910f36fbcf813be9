"""Questions to teach from: those that ship, and what is said of a file of others that cannot be taught from."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from pages import blocks
from questions import SHIPS
from repository import ROOT

from wise.errors import ConfigError
from wise.training.router.builtin_questions import LEAST_SUBJECTS, SUBJECTS, builtin_questions, read_questions


def of(relation: dict[str, list[str]]) -> list[str]:
    return [*relation["wordings"], *relation.get("requests", ())]


def test_every_wording_that_ships_names_its_subject_once_and_stands_once_in_its_kind() -> None:
    told = builtin_questions()
    assert set(told) == {SUBJECTS, *told[SUBJECTS]}
    for kind, subjects in told[SUBJECTS].items():
        assert len(set(subjects)) == len(subjects) >= LEAST_SUBJECTS
        wordings = [wording for relation in told[kind].values() for wording in of(relation)]
        assert [wording for wording, count in Counter(wordings).items() if count > 1] == []
        assert [w for w in wordings if w.count("{}") != 1 or w.count("{") != 1 or w != w.strip()] == []


def test_enough_ships_to_teach_from() -> None:
    told = builtin_questions()
    relations = {f"{kind}.{name}": about for kind in told[SUBJECTS] for name, about in told[kind].items()}
    assert len(relations) >= 350
    for name, relation in relations.items():
        assert set(relation) <= {"wordings", "requests", "answers"}, name
        assert len(of(relation)) >= 5 and len(relation["answers"]) >= 3, name
        asked = [wording.endswith("?") for wording in relation["wordings"]]
        assert any(asked) and not all(asked), f"{name}: questions and beginnings of sentences"


def test_what_ships_is_itself_a_file_that_can_be_read() -> None:
    read = read_questions(ROOT / "training" / "router" / "builtin_questions.toml")
    told = builtin_questions()
    assert read[SUBJECTS] == told[SUBJECTS]
    assert {k: {n: of(r) for n, r in read[k].items()} for k in read[SUBJECTS]} == {
        k: {n: of(r) for n, r in told[k].items()} for k in told[SUBJECTS]
    }


def test_the_example_of_the_page_can_be_taught_from(tmp_path: Path) -> None:
    [example] = blocks((ROOT / "docs" / "howto" / "router.md").read_text(encoding="utf-8"), "toml")
    assert list(read_questions(written(tmp_path, example))[SUBJECTS]) == ["server"]
    assert "server" in read_questions(written(tmp_path, example), added_to=builtin_questions())[SUBJECTS]


def written(folder: Path, text: str) -> Path:
    file = folder / "questions.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_file_is_read_as_it_is_or_beside_another(tmp_path: Path) -> None:
    file = written(tmp_path, SHIPS)
    own = read_questions(file)
    assert own[SUBJECTS] == {"ship": ["the Vasa", "the Bounty", "the Erika"]}
    assert own["ship"]["port"]["wordings"] == ["What is the home port of {}?", "{} comes home to"]
    both = read_questions(file, added_to=builtin_questions())
    assert set(both) == {*builtin_questions(), "ship"} and both["ship"] == own["ship"]
    shipped = builtin_questions()["city"]
    assert {name: of(about) for name, about in both["city"].items()} == {n: of(a) for n, a in shipped.items()}


def test_beside_another_a_file_may_add_a_little_to_a_kind(tmp_path: Path) -> None:
    more = "[subjects]\ncity = ['Ulm']\n[city.moor]\nwordings = ['Which moor lies at {}?', '{} lies at the moor of']"
    file = written(tmp_path, more)
    both = read_questions(file, added_to=builtin_questions())
    assert both[SUBJECTS]["city"] == [*builtin_questions()[SUBJECTS]["city"], "Ulm"]
    assert set(both["city"]) == {*builtin_questions()["city"], "moor"} and "moor" not in builtin_questions()["city"]
    with pytest.raises(ConfigError, match=r"subjects\.city: at least 3 are needed, and it has 1"):
        read_questions(file)
    known = next(iter(builtin_questions()["city"].values()))["wordings"][0]
    taken = written(tmp_path, f"[subjects]\ncity = ['Ulm']\n[city.moor]\nwordings = ['a {{}} is', \"{known}\"]")
    with pytest.raises(ConfigError, match=re.escape("[city.moor]") + ".*under .* too; leave one out"):
        read_questions(taken, added_to=builtin_questions())


REFUSED = [
    ("subjects = [", "a TOML file of questions was expected"),
    ("", "[subjects] is missing"),
    ("subjects = ['ship']", "[subjects] is missing"),
    (SHIPS.replace(', "the Bounty", "the Erika"', ""), "subjects.ship: at least 3 are needed, and it has 1"),
    (SHIPS.replace('"the Erika"', '"the Vasa"'), "'the Vasa' is there twice"),
    (SHIPS.replace('"the Erika"', "7"), "a list of texts was expected"),
    (SHIPS.replace("[ship.builder]", "[shop.builder]"), "[shop]: no such kind under [subjects]; did you mean 'ship'?"),
    (SHIPS.partition("[ship.builder]")[0], "[ship]: at least 4 relations are needed, and it has 3"),
    (SHIPS.partition("[ship.owner]")[0], "[ship]: at least 4 relations are needed, and it has 0"),
    (SHIPS.replace("requests = ", "wordings_ = "), "[ship.length] wordings_: is not known"),
    (SHIPS.replace('"tell me the length of {}"', ""), "[ship.length]: at least 2 wordings are needed, and it has 1"),
    (SHIPS.replace("The owner of {} is", "The owner is"), "'The owner is': exactly one {} is expected, and it has 0"),
    (SHIPS.replace("The owner of {} is", "{}, owner of {}"), "[ship.owner] '{}, owner of {}': exactly one {}"),
    (SHIPS.replace("{} was built by", "Who owns {}?"), "[ship.builder] 'Who owns {}?': stands under [ship.owner] too"),
    (SHIPS.replace("The owner of {} is", "Who owns {}?"), "ship.owner.wordings: 'Who owns {}?' is there twice"),
    (SHIPS.replace("tell me the length of {}", "How long is {}?"), "[ship.length] 'How long is {}?': stands twice"),
    (SHIPS.replace("requests", "reqests"), "[ship.length] reqests: is not known; did you mean 'requests'?"),
    (SHIPS.replace('["How long is {}?"]', '"How long is {}?"'), "ship.length.wordings: 'How long is {}?' was given"),
    (SHIPS + "\n[ship]\nport = 3\n", "a TOML file of questions was expected"),
    ("[subjects]\nship = ['a', 'b', 'c']\n[ship]\nowner = 'x'\n", "ship.owner: a str was given, a table was expected"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_what_cannot_be_taught_from_is_refused_with_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        read_questions(file)
    assert str(refused.value).startswith(f"{file}: ") and said in str(refused.value), refused.value


def test_a_file_that_is_not_there_or_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: .*a TOML file of questions was expected"):
        read_questions(tmp_path / "gone.toml")
    (tmp_path / "raw.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"raw\.toml: .*a TOML file of questions was expected"):
        read_questions(tmp_path / "raw.toml")
