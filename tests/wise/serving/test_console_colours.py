"""The colours of the console, from its style sheet: each text contrasts with its background, in both modes."""

from __future__ import annotations

import colorsys
import re
from itertools import product

import pytest
from repository import ROOT

CSS = (ROOT / "wise/serving/console/console.css").read_text()
MODES = dict(zip(("light", "dark"), re.findall(r":root \{(.*?)\}", CSS, re.DOTALL), strict=True))
TEXT, CONTROL = 4.5, 3.0
"""Least contrasts of WCAG 2.2 AA: of text, and of the border of a control."""
ON_CARDS = [(name, "card") for name in ("ink", "soft", "blue", "green", "red", "amber", "grey")]
ON_TINTS = [(name, f"{name}-tint") for name in ("green", "red", "amber", "grey")]
ON_PAGE = [("ink", "bg"), ("soft", "bg")]
IN_TURNS = [*product(("ink", "grey", "blue"), ("tint", "grey-tint"))]
FIELDS = [("ink", "field"), ("soft", "field"), ("blue-ink", "blue")]
Rgb = tuple[float, float, float]


def variables(mode: str) -> dict[str, str]:
    """The colours of a mode; those that it does not set are as in light."""
    pairs = (pair for part in ("light", mode) for pair in re.findall(r"--([\w-]+):([^;]+);", MODES[part]))
    return {name: value.strip() for name, value in pairs}


def rgb(value: str) -> Rgb:
    assert re.fullmatch("#[0-9a-f]{6}", value), value
    return tuple(int(value[i : i + 2], 16) / 255 for i in (1, 3, 5))  # type: ignore[return-value]


def luminance(color: Rgb) -> float:
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in color]
    return sum(share * v for share, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first: Rgb, second: Rgb) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def set_together() -> set[tuple[str, str]]:
    """Pairs that one rule of the sheet sets: a text and its background."""
    rules = re.findall(r"\{([^{}]*)\}", CSS)
    inks = (re.search(r"(?<![-\w])color: var\(--([\w-]+)\)", rule) for rule in rules)
    grounds = (re.search(r"background: var\(--([\w-]+)\)", rule) for rule in rules)
    return {(ink[1], ground[1]) for ink, ground in zip(inks, grounds, strict=True) if ink and ground}


@pytest.mark.parametrize("mode", MODES)
def test_text_stands_out(mode: str) -> None:
    colors = variables(mode)
    pairs = {*ON_CARDS, *ON_PAGE, *ON_TINTS, *IN_TURNS, *FIELDS, *set_together()}
    assert {("green", "green-tint"), ("blue-ink", "blue"), ("grey", "card")} <= set_together() and len(pairs) > 20
    poor = {pair: round(contrast(rgb(colors[pair[0]]), rgb(colors[pair[1]])), 2) for pair in pairs}
    assert not {pair: ratio for pair, ratio in poor.items() if ratio < TEXT}


@pytest.mark.parametrize("mode", MODES)
def test_fields_and_focus_stand_out(mode: str) -> None:
    colors = variables(mode)
    for edge, ground in (("edge", "card"), ("edge", "field"), ("blue", "card"), ("blue", "bg")):
        assert contrast(rgb(colors[edge]), rgb(colors[ground])) >= CONTROL, (edge, ground)


@pytest.mark.parametrize("mode", MODES)
def test_words_of_an_edit_stand_out_in_every_hue(mode: str) -> None:
    colors = variables(mode)
    tint = float(colors["spoke-tint"].rstrip("%")) / 100
    grounds = [colorsys.hls_to_rgb(hue / 360, tint, 0.6) for hue in range(360)]
    assert min(contrast(rgb(colors["ink"]), ground) for ground in grounds) >= TEXT


def test_too_little_contrast_would_be_seen() -> None:
    assert contrast(rgb("#000000"), rgb("#ffffff")) == pytest.approx(21)
    assert contrast(rgb("#667085"), rgb("#eef0f3")) < TEXT  # negative control: the former colours
