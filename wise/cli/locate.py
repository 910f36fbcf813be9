"""`wise locate`: traces where a model keeps facts, and finds the layer at which editing works best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from wise.cli.common import check_output, check_picture, file_facts, progress_bars, show_table, write_figures
from wise.cli.options import FormatOptions, JsonOption, ModelOptions, ProgressOption, SeedOption, with_options
from wise.cli.terminal import echo, show_json
from wise.errors import ConfigError, EditError

if TYPE_CHECKING:
    from wise.edits import Record
    from wise.lab.locate.facts import Fact

SWEEP = {
    "layer": "layer", "reliability": "reliability", "generalization": "generalization", "locality": "locality",
    "success": "mean", "failed": "failed", "cpu_seconds_per_edit": "CPU s", "trace_effect": "subject state",
    "trace_effect_ffn": "subject ffn", "trace_effect_last_token": "last state",
}
"""Field of a layer's result -> column."""
COLUMNS = 6
"""Layers of a table; of a deeper model every second, or third, is shown."""


@with_options
def locate(
    data: Annotated[Path, Option(help="File of known facts, or of edits of facts.")],
    *,
    model: ModelOptions,
    read: FormatOptions,
    facts: Annotated[int, Option(min=1, help="Facts to read, from the start of the file.")] = 100,
    samples: Annotated[int, Option(min=1, help="Draws of noise per fact.")] = 5,
    window: Annotated[
        int | None, Option(min=1, help="Layers restored at once. Left out: the paper's 10 of 48.")
    ] = None,
    sweep_edits: Annotated[
        int, Option(min=0, help="Edits made at each layer: the records behind the facts. 0: trace only.")
    ] = 50,
    layers: Annotated[str | None, Option(help="Layers to edit, such as 0,2,4. Left out: all.")] = None,
    output: Annotated[Path | None, Option(help="File for all figures, JSON.")] = None,
    picture: Annotated[Path | None, Option(help="File to draw the heat maps to, such as heat.png.")] = None,
    seed: SeedOption = None,
    as_json: JsonOption = False,
    progress: ProgressOption = False,
) -> None:
    """Trace where facts are kept, edit at every layer, and recommend one.

    The trace puts parts of a clean run back into one with noise on the subject. It says through which tokens and layers
    an answer runs, and not where editing works; so the layer is recommended by the edits alone.
    """
    check_output("--output", output)
    check_picture(picture, output)
    layer_numbers = _layers(layers, sweep_edits)
    from wise.lab.locate.facts import read_facts

    known_facts = read_facts(data, format=read.format, columns=read.named_columns(), limit=facts)
    first, records = _records_behind(data, known_facts, sweep_edits, read) if sweep_edits else (0, [])
    from wise.lab.locate.location import trace
    from wise.lab.locate.picture import draw
    from wise.lab.locate.sites import check_layers, find_sites

    source = {"data": file_facts(data)}
    base, tokenizer = model.load()
    check_layers(layer_numbers, find_sites(base).depth)
    figures: dict[str, Any] = {}
    with progress_bars(progress) as show:
        located = trace(
            base, tokenizer, known_facts,
            samples=samples, window=window, seed=seed or 0, name=model.called, progress=show,
        )
        traced = located.to_dict() | source
        if records:
            from wise.lab.eval.results_file import write_json
            from wise.lab.locate.sweep import sweep

            if output is not None:  # so that what ends the edits loses no trace
                write_json(output, traced)
            swept = sweep(base, tokenizer, records, located, first=first, layers=layer_numbers, progress=show)
            figures = swept.to_dict()
    result = traced | figures
    show_location(result)
    write_figures(result, output, picture, draw)
    if as_json:
        show_json(result)


def show_location(result: Mapping[str, Any]) -> None:
    """The tables of one trace, and of the edits beside it."""
    from wise.lab.locate.sites import TITLES

    for kind, title in TITLES.items():
        effects = result["effects"][kind]
        window = result["window"]
        width = "" if kind == "state" or window == 1 else f", {window} layers at a time"
        labels = [f"{role} ({count})" for role, count in zip(result["roles"], effects["n"], strict=True)]
        _show_effects(f"effect of the {title}{width}", "token (facts)", labels, effects["mean"], effects["ci"])
    left_out = ", ".join(f"{count} {why}" for why, count in result["skipped"].items()) or "none"
    echo(
        f"{result['facts']} facts traced, left out: {left_out}\n"
        "an effect is a difference of probabilities, with its 95% bootstrap interval over facts; the answer's first "
        f"token has {result['high_score']:.3f} clean and {result['low_score']:.3f} with noise\n"
        f"standard deviation of the noise: {result['noise']:.4f}; {result['samples']} draws per fact"
    )
    _show_sweep(result)


def _show_effects(
    title: str,
    first: str,
    labels: Sequence[str],
    means: Sequence[Sequence[float | None]],
    bounds: Sequence[Sequence[Sequence[float] | None]],
) -> None:
    """One row a label: its effect at layers, evenly chosen where there are many, and at its strongest layer of all."""
    depth = len(means[0])
    shown = range(0, depth, math.ceil(depth / COLUMNS))
    rows = [
        (label, *(values[layer] for layer in shown), _strongest(values, intervals))
        for label, values, intervals in zip(labels, means, bounds, strict=True)
    ]
    show_table(title, (first, *(f"layer {layer}" for layer in shown), "strongest layer, 95%"), rows)


def _strongest(values: Sequence[float | None], intervals: Sequence[Sequence[float] | None]) -> str:
    finite = [(value, layer) for layer, value in enumerate(values) if value is not None]
    if not finite:
        return "-"
    value, layer = max(finite, key=lambda pair: pair[0])
    low, high = intervals[layer] or (value, value)
    return f"{layer}: {value:.3f} [{low:.3f}, {high:.3f}]"


def _show_sweep(result: Mapping[str, Any]) -> None:
    advice = result["recommendation"]
    if advice is None:
        echo("no layer is recommended: where a trace is strongest does not tell where editing works")
        return
    echo("")
    rows = [[row[name] for name in SWEEP] for row in result["sweep"]]
    title = (
        "edits at each layer (generated; CPU seconds per edit), and the trace at the subject's last and the last token"
    )
    show_table(title, tuple(SWEEP.values()), rows)
    records = result["sweep_records"]
    last = records["first"] + records["count"] - 1
    by_kind = advice["correlations"].items()
    correlations = [f"{SWEEP[name]} {'-' if value is None else f'{value:.2f}'}" for name, value in by_kind]
    echo(
        f"edited: records {records['first']} to {last} of the file, counting from 0; the layer is chosen on them, so "
        f"measure it on others\nrank correlation with editing success over the layers: {', '.join(correlations)}"
    )
    echo(f"recommended: layer {advice['layer']}, the best mean of {len(result['sweep'])} layers edited")


def _layers(text: str | None, edits: int) -> list[int] | None:
    if text is None:
        return None
    if not edits:
        raise ConfigError("--layers names the layers to edit, and --sweep-edits 0 edits none; leave one of them out")
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--layers {text}: expected numbers with commas between them, such as 0,2,4") from None


def _records_behind(data: Path, facts: Sequence[Fact], edits: int, read: FormatOptions) -> tuple[int, list[Record]]:
    """The records behind those whose facts are traced, and the number of the first of them."""
    try:
        records = read.read(data)
    except EditError as error:
        hint = "the layers are edited with this file; where it holds known facts alone, give --sweep-edits 0"
        raise EditError(f"{error} ({hint})") from None
    traced = {fact.prompt for fact in facts}
    first = max((i + 1 for i, record in enumerate(records) if record.edit.prompt in traced), default=0)
    chosen = records[first : first + edits]
    if len(chosen) < edits:
        raise EditError(
            f"{data}: {edits} records to edit were asked for, and {len(chosen)} stand behind the {len(facts)} facts; "
            "ask for fewer --facts or --sweep-edits, or give --sweep-edits 0"
        )
    return first, chosen
