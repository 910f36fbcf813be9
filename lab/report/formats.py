"""Formats figures, with the exact value kept in the markup."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wise.lab.report.svg import Markup, element

ABSENT = "not measured"


def percent(share: float) -> str:
    """A share in percent: one decimal from one percent on, two digits below; 100% is said of 1 alone.

    >>> percent(0.9731), percent(0.97), percent(0.00042), percent(1), percent(0.9999), percent(0)
    ('97.3%', '97.0%', '0.042%', '100%', '99.99%', '0%')
    """
    value = round(100 * share, 9)
    if value in (0, 100):
        return f"{value:.0f}%"
    if abs(value) < 1:
        return f"{_digits(value, 2)}%"
    if 99.95 <= value < 100:
        return f"{min(value, 99.99):.2f}%"
    return f"{value:.1f}%"


def points(difference: float) -> str:
    """A difference of shares, in percentage points.

    >>> points(0.123), points(0.01), points(0.0)
    ('12.3 points', '1 point', '0 points')
    """
    written = f"{100 * difference:.1f}".removesuffix(".0")
    written = "0" if written == "-0" else written
    return f"{written} point" if written == "1" else f"{written} points"


def decimal(value: float) -> str:
    """Three decimals, or four where three would say 1 of less.

    >>> decimal(0.8421), decimal(0.9996), decimal(1)
    ('0.842', '0.9996', '1.000')
    """
    return f"{min(value, 0.9999):.4f}" if 0.9995 <= value < 1 else f"{value:.3f}"


def short(value: float) -> str:
    """Three digits, thousands apart.

    >>> short(12.345), short(1234567.0), short(0.01234), short(0.0), short(3)
    ('12.3', '1,234,567', '0.0123', '0', '3')
    """
    if value == int(value) or abs(value) >= 1000:
        return f"{round(value):,}"
    return _digits(value, 3)


def plain(name: str) -> str:
    """A name of the file as words.

    >>> plain("portability.subject_aliasing")
    'portability: subject aliasing'
    """
    return name.replace(".", ": ").replace("_", " ")


def _digits(value: float, digits: int) -> str:
    """So many significant digits, never with an exponent; zeros at the end are dropped."""
    written = f"{value:.{digits}g}"
    if "e" in written:
        written = f"{float(written):.12f}"
    return written.rstrip("0").rstrip(".") if "." in written else written


FORMS: Mapping[str, Callable[[float], str]] = {
    "percent": percent,
    "points": points,
    "decimal": decimal,
    "short": short,
}


def figure(value: Any, form: str = "percent") -> Markup:
    """A figure as `<data value="exact">written</data>`, or a dash that is read as "not measured"."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return element("span", "–", class_="absent", title=ABSENT)
    return element("data", FORMS[form](value), value=repr(value))


def interval(bounds: Any, form: str = "percent") -> Markup:
    """A confidence interval in small type; nothing where there is none."""
    if not isinstance(bounds, list | tuple) or len(bounds) != 2 or None in bounds:
        return Markup("")
    low, high = (FORMS[form](bound) for bound in bounds)
    return element("span", f"{low.removesuffix('%') if high.endswith('%') else low}–{high}", class_="ci")
