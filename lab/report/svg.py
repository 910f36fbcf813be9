"""Builds markup in code: text and attributes of elements are escaped."""

from __future__ import annotations

from html import escape


class Markup(str):
    """Text that is already markup: jinja2, and `element`, put it in as it is."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


def element(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """One element. Children that are not `Markup` are text, and are escaped; an attribute that is None is left out.

    Underscores in names of attributes stand for hyphens, and one at the end is dropped.

    >>> element("text", "a < b", x=1.0, text_anchor="end", class_="tick")
    '<text x="1" text-anchor="end" class="tick">a &lt; b</text>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if not children:
        return Markup(f"<{name}{written}/>")
    inside = "".join(child if isinstance(child, Markup) else escape(child, quote=False) for child in children)
    return Markup(f"<{name}{written}>{inside}</{name}>")


def joined(parts: list[Markup]) -> Markup:
    return Markup("".join(parts))


def number(value: float) -> str:
    """A coordinate, to a tenth of a pixel.

    >>> number(12.04), number(-0.01), number(3.25)
    ('12', '0', '3.2')
    """
    rounded = round(value, 1) + 0.0
    return str(int(rounded)) if rounded == int(rounded) else str(rounded)


def path(points: list[tuple[float, float]]) -> str:
    """The `d` of a line through points."""
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)


def _plain(value: str | float) -> str:
    return value if isinstance(value, str) else number(value)
