"""Writes the page of one run: one HTML file from the templates and charts of this package."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wise.errors import ConfigError, given
from wise.lab.report import outcomes, routing
from wise.lab.report.charts import retention
from wise.lab.report.formats import FORMS, figure, interval, plain

if TYPE_CHECKING:
    from jinja2 import Environment

NEEDED = ("editor", "edits", "generated")
STRONG, MIDDLE = 0.635, 0.5
"""Shares of the scale from which text turns light on the light page, and dark on the dark one. With the two ends of
the scale (`--heat-low`, `--heat-high`) this keeps every text at a contrast of 4.5 to its ground."""


def write_report(run: Mapping[str, Any], path: Path) -> None:
    """Writes the page of one run, as `wise.lab.eval.results_file.read_run` reads it. The same run gives the same bytes.

    What was not measured (null or missing) is left out or said to be so.

    Raises ConfigError, before anything is written, where jinja2 is not installed, the run has none of the keys that
    every run has, or holds NaN; and where `path` cannot be written.
    """
    _check(run)
    routed = run.get("routing")
    page = _templates().get_template("run.html").render(
        run=run,
        wrong=outcomes.wrong(run.get("outcomes") or []),
        retention=retention(run.get("retention") or []),
        panels=routing.panels(routed) if routed else [],
        roc=routing.roc(routed) if routed else None,
        by_age=routing.by_age(routed) if routed else None,
    )
    try:
        Path(path).write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give a file that can be written") from error


@cache
def _templates() -> Environment:
    """Every value is escaped where it is put in: prompts and answers come from anywhere."""
    try:
        from jinja2 import ChainableUndefined, Environment, FunctionLoader
    except ImportError as error:
        raise ConfigError("a report needs jinja2: pip install 'wise-runtime[report]'") from error
    folder = files("wise.lab.report").joinpath("templates")
    environment = Environment(
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=ChainableUndefined,  # what a run lacks reads like what it has as null
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(figure=figure, interval=interval, ink=ink)
    environment.filters.update({**FORMS, "plain": plain})
    return environment


def ink(share: float) -> str:
    """The class of text on ground that is shaded so far."""
    return "strong" if share >= STRONG else "mid" if share >= MIDDLE else ""


def _check(value: Mapping[str, Any]) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{given(value)} was given, a run was expected")
    absent = [name for name in NEEDED if value.get(name) is None]
    if absent:
        raise ConfigError(f"not a run: it has no {', '.join(absent)}; give the file that wise wrote")
    _check_finite(value, "")


def _check_finite(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {value} was found, a finite number or null was expected; measure again")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_finite(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            _check_finite(inner, f"{where}[{place}]")
