"""The pages: whole and valid HTML, nothing loaded, nothing injected, and the figures of the file in them."""

from __future__ import annotations

import doctest
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from report_sample import sample_run

from wise.errors import ConfigError
from wise.lab.report import write_report
from wise.lab.report.charts import spread
from wise.lab.report.formats import percent
from wise.lab.report.outcomes import LONGEST, MOST, wrong
from wise.lab.report.page import MIDDLE, STRONG, ink

VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}
EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
STYLES = Path(write_report.__code__.co_filename).parent / "templates" / "style.css"


class Page(HTMLParser):
    """What a page is made of; a tag that is closed out of turn is noted."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.figures: list[tuple[float, str]] = []
        """Of each `data` element: its value, and what is written."""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.open and self.open[-1] == "data":
            self.figures.append((float(self.tags[-1][1]["value"] or "nan"), data))

    @property
    def balanced(self) -> bool:
        return not self.open and not self.wrong

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    return sample_run()


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Page]:
    """Writes a page and reads it back."""

    def written(value: Any) -> Page:
        write_report(value, tmp_path / "page.html")
        return Page((tmp_path / "page.html").read_text(encoding="utf-8"))

    return written


def copied(value: Any) -> Any:
    return json.loads(json.dumps(value))


def mapped(value: Any, change: Callable[[str, Any], Any], key: str = "") -> Any:
    """The same JSON with every leaf changed; `change` is given the key above it."""
    if isinstance(value, dict):
        return {name: mapped(inner, change, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [mapped(inner, change, key) for inner in value]
    return change(key, value)


# -- the page is HTML, whole, and alone ---------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "balanced"),
    [("<p><b>x</b></p>", True), ("<p><b>x</p></b>", False), ("<p>", False), ("<g><path d=''/></g>", True)],
)
def test_the_reader_of_pages_sees_what_is_not_closed(text: str, balanced: bool) -> None:
    assert Page(text).balanced is balanced


def test_the_page_is_balanced_and_has_every_section(run: dict[str, Any], page: Callable[..., Page]) -> None:
    found = page(run)
    assert found.balanced
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {"routing", "quality", "retention", "outcomes", "conditions"} <= set(ids)
    assert found.count("svg") == len(run["routing"]["classes"]) + 3  # ROC, by age, retention
    assert all(attributes.get("aria-label") for tag, attributes in found.tags if tag == "svg")
    assert found.count("caption") == found.count("table")
    links = [attributes["href"] for tag, attributes in found.tags if tag == "a"]
    assert {str(link).removeprefix("#") for link in links} <= set(ids)


def test_nothing_is_loaded_from_anywhere(page: Callable[..., Page]) -> None:
    found = page(sample_run())
    for tag, attributes in found.tags:
        assert not {"src", "srcset", "action", "data", "background", "poster"} & set(attributes), tag
        assert str(attributes.get("href", "#")).startswith("#")
    assert not found.count("link") and not found.count("iframe")
    source = "".join(found.text)
    assert not re.search(r"https?:|url\(|@import|fetch\(|import\(", source)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path, run: dict[str, Any]) -> None:
    pages = []
    for name, value in (("one", run), ("two", copied(run)), ("other", sample_run(seed=1))):
        write_report(value, tmp_path / name)
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1] != pages[2]


def test_five_hundred_edits_stay_small(tmp_path: Path) -> None:
    write_report(sample_run(edits=500), tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 400_000


# -- nothing is injected ------------------------------------------------------------------------


def test_text_of_the_run_stays_text(run: dict[str, Any], page: Callable[..., Page]) -> None:
    plain = page(run)
    evil = mapped(run, lambda key, v: EVIL if isinstance(v, str) and key not in ("scored_against", "unit") else v)
    evil["routing"]["classes"][EVIL] = evil["routing"]["classes"].pop("generic")
    evil["probes"][EVIL] = evil["probes"].pop("multi_hop")
    found = page(evil)
    assert found.balanced
    assert not found.count("img")
    assert (found.count("script"), found.count("svg")) == (plain.count("script"), plain.count("svg")) == (1, 11)
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert sum(EVIL in text for text in found.text) > 100


# -- what was not measured ----------------------------------------------------------------------

OPTIONAL = sorted(set(sample_run()) - {"editor", "edits", "generated"})


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_part_that_is_null_or_missing_is_left_out(name: str, run: dict[str, Any], page: Callable[..., Page]) -> None:
    light = run if name == "routing" else {**run, "routing": None}
    without = {key: value for key, value in light.items() if key != name}
    assert page(without).balanced
    assert page({**without, name: None}).balanced


def test_a_bare_run_says_what_is_missing(page: Callable[..., Page]) -> None:
    found = page({"editor": "none", "edits": 3, "generated": {"reliability": 0.5}})
    text = " ".join(found.text)
    assert found.balanced
    assert "50.0%" in text
    assert "Not measured in this run." in text
    assert any(attributes.get("title") == "not measured" for _, attributes in found.tags)
    assert "None" not in text and "undefined" not in text.casefold().replace("undefined behaviour", "")


def test_figures_that_are_null_are_dashes(run: dict[str, Any], page: Callable[..., Page]) -> None:
    keep = {"n", "edits", "counts", "histogram", "roc", "bins", "from", "to", "promised"}
    keep |= {"generated", "teacher_forced"}  # of outcomes
    empty = mapped(run, lambda key, v: None if isinstance(v, float) and key not in keep else v)
    empty["generated"] = dict.fromkeys(run["generated"])
    assert empty["routing"]["classes"]["generic"]["auroc"] is None
    found = page(empty)
    assert found.balanced
    assert "None" not in " ".join(found.text)


@pytest.mark.parametrize("name", ["editor", "edits", "generated"])
def test_what_is_no_run_is_refused(name: str, run: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"not a run: it has no {name}"):
        write_report({key: value for key, value in run.items() if key != name}, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_refused_by_its_place(bad: float, run: dict[str, Any], tmp_path: Path) -> None:
    broken = copied(run)
    broken["routing"]["classes"]["generic"]["roc"][1][0] = bad
    with pytest.raises(ConfigError, match=r"routing\.classes\.generic\.roc\[1\]\[0\]: (nan|inf) was found"):
        write_report(broken, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_path_that_cannot_be_written_is_named(run: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-folder"):
        write_report(run, tmp_path / "no-folder" / "page.html")


def test_without_jinja2_the_way_out_is_named(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; sys.modules['jinja2'] = None\n"
        "from wise.lab.report import write_report\n"
        "write_report({'editor': 'none', 'edits': 1, 'generated': {}}, pathlib.Path('page.html'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "ConfigError: a report needs jinja2: pip install 'wise-runtime[report]'" in done.stderr
    assert not (tmp_path / "page.html").exists()


def test_importing_is_light() -> None:
    code = "import sys, wise.lab.report; print(*{'torch', 'jinja2', 'matplotlib', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


# -- the figures of the page are those of the file ----------------------------------------------


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def test_every_figure_is_there_and_no_other(run: dict[str, Any], page: Callable[..., Page]) -> None:
    written = {value for value, _ in page(run).figures}
    shown = [run[part] for part in ("generated", "teacher_forced", "counts", "locality", "counterfact", "fluency")]
    shown += [run["routing"]["flips_by"], run["routing"]["oracle"], run["instances"], *run["retention"][:0]]
    figures = ("n", "auroc", "average_precision", "fpr_at_95_tpr", "tpr_at_fpr_0.01", "tpr_at_fpr_0.001", "opened")
    for measured in run["routing"]["classes"].values():
        shown += [{key: measured[key] for key in figures}, measured["against_edits"]]
    for measured in run["routing"]["positives"].values():
        shown.append({key: measured[key] for key in ("n", "opened", "slot_top1", "edit_top1")})
    missing = {number for part in shown for number in numbers(part)} - written
    assert not missing

    known: set[float] = set()
    mapped(run, lambda _, v: known.add(float(v)) if isinstance(v, int | float) else None)
    assert written <= known


def test_what_is_written_is_the_value(run: dict[str, Any], page: Callable[..., Page]) -> None:
    found = page(run).figures
    assert len(found) > 200
    for value, text in found:
        shown = text.replace(",", "")
        if shown.endswith("%"):
            read, digit = float(shown[:-1]) / 100, 100
        elif "point" in shown:
            read, digit = float(shown.split()[0]) / 100, 100
        else:
            read, digit = float(shown), 1
        places = len(shown.rstrip("% points").partition(".")[2])
        assert abs(read - value) <= 0.51 * 10.0**-places / digit or value > 1000, (value, text)
        assert text != "100%" or value == 1, "no share is rounded up to all"


@pytest.mark.parametrize("module", ["charts", "formats", "outcomes", "routing", "svg"])
def test_examples_in_docstrings(module: str) -> None:
    assert doctest.testmod(import_module(f"wise.lab.report.{module}")).failed == 0


@pytest.mark.parametrize("share", [0.0, 1e-6, 0.00042, 0.0099999, 0.01, 0.29, 0.5, 0.99949, 0.99999999, 1.0])
def test_percent_never_says_all_or_nothing_of_less(share: float) -> None:
    assert (percent(share) == "0%") is (share == 0)
    assert (percent(share) == "100%") is (share == 1)


# -- wrong answers -----------------------------------------------------------------------------


def test_wrong_answers_are_the_farthest_off_and_of_every_measure(run: dict[str, Any]) -> None:
    found = wrong(run["outcomes"])
    bad = [o for o in run["outcomes"] if o["generated"] < 1]
    assert found.total == len(bad) > MOST == len(found.shown)
    for measure, count in found.counts.items():
        of_it = [o for o in bad if o["measure"] == measure]
        shown = [o["teacher_forced"] for o in found.shown if o["measure"] == measure]
        assert count == len(of_it)
        assert shown == sorted(o["teacher_forced"] for o in of_it)[: len(shown)]
        assert len(shown) == count or len(shown) >= MOST // len(found.counts)
    long = wrong([{**bad[0], "prompt": "a" * 5000 + "end"}]).shown[0]["prompt"]
    assert len(long) < LONGEST + 10 and long.endswith("end")


# -- the charts -----------------------------------------------------------------------------------


def test_histograms_have_the_counts_as_heights(run: dict[str, Any], page: Callable[..., Page]) -> None:
    areas = [a["d"] for tag, a in page(run).tags if tag == "path" and str(a.get("class", "")).startswith("area")]
    routing = run["routing"]
    counts = [routing["positives"]["paraphrases"]["histogram"], routing["classes"]["same_relation"]["histogram"]]
    for outline, expected in zip(areas[2:4], counts, strict=True):
        ys = [float(pair.split()[1]) for pair in str(outline).strip("MZ").split("L")]
        heights = [abs(y - ys[0]) for y in ys[1:-1:2]]
        assert len(heights) == len(expected) == 40
        assert heights == pytest.approx([max(heights) * n / max(expected) for n in expected], abs=0.11)


def test_roc_curves_only_rise(run: dict[str, Any], page: Callable[..., Page]) -> None:
    curves = [str(a["d"]) for tag, a in page(run).tags if tag == "path" and a.get("class") == "line"]
    curves = curves[: len(run["routing"]["classes"])]
    for curve in curves:
        places = [tuple(map(float, pair.split())) for pair in curve.strip("M").split("L")]
        assert [x for x, _ in places] == sorted(x for x, _ in places)
        assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)


def test_labels_are_spread() -> None:
    for places in ([5.0, 5.0, 5.0], [90.0, 88.0, 91.0], [10.0, 50.0, 90.0]):
        moved = spread(places, 10, 0, 92)
        ordered = sorted(moved)
        assert all(b - a >= 10 for a, b in zip(ordered, ordered[1:], strict=False))
        assert min(moved) >= 0 and max(moved) <= 92
        assert sorted(range(3), key=lambda i, p=places: (p[i], i)) == sorted(range(3), key=lambda i, m=moved: m[i])


# -- legible in both themes -----------------------------------------------------------------------


def colours(theme: int) -> dict[str, tuple[float, ...]]:
    pairs = re.findall(r"(--[\w-]+): light-dark\((#\w{6}), (#\w{6})\)", STYLES.read_text())
    return {name: tuple(int(pair[theme][i : i + 2], 16) for i in (1, 3, 5)) for name, *pair in pairs}


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """WCAG 2.2: (lighter + 0.05) / (darker + 0.05) of relative luminances."""

    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 255 / 12.92 if c <= 0.04045 * 255 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast_is_enough(theme: int) -> None:
    palette = colours(theme)
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    for text in ("--ink", "--soft", "--accent", "--bad"):
        for ground in ("--ground", "--raised"):
            assert contrast(palette[text], palette[ground]) >= 4.5, text
    for i in range(1, 10):
        assert contrast(palette[f"--s{i}"], palette["--ground"]) >= 4.5, i
    inks = {"": "--heat-ink", "mid": "--heat-mid", "strong": "--heat-strong"}
    low, high = palette["--heat-low"], palette["--heat-high"]
    for step in range(1001):
        mixed = tuple(a + (b - a) * step / 1000 for a, b in zip(low, high, strict=True))
        assert contrast(mixed, palette[inks[ink(step / 1000)]]) >= 4.5, step
    assert 0 < MIDDLE < STRONG < 1
