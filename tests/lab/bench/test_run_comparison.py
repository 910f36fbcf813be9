"""Runs side by side: what is paired, what is tested, what is said where two runs are not alike."""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import typer
from scipy import stats
from typer.testing import CliRunner, Result

from wise.cli.compare import compare
from wise.errors import ConfigError
from wise.lab.bench.run_comparison import Contrast, Difference, compare_runs
from wise.lab.eval.results_file import KEYS, SCHEMA
from wise.probes import OF_A_CASE

EMPTY: dict[str, Any] = {"number": 1, "text": "x", "object": {}, "object or null": None, "list": []}
COUNTS = {"reliability": 1, "generalization": 4, "locality": 3, "multi_hop": 2}


def asked(record: str, measure: str, prompt: str, generated: float, forced: float) -> dict[str, Any]:
    return {
        "record": record,
        "measure": measure,
        "prompt": prompt,
        "expected": "x",
        "answer": "y",
        "generated": generated,
        "teacher_forced": forced,
    }


def outcomes(seed: int, right: float, *, records: int = 12) -> list[dict[str, Any]]:
    """Random outcomes; those of one record agree more often than chance, as real ones do."""
    draw = random.Random(seed)
    found = []
    for record in range(records):
        ease = draw.random()
        for measure, count in COUNTS.items():
            for prompt in range(count):
                generated = float(draw.random() < (right + ease) / 2)
                found.append(asked(f"r{record}", measure, f"p{prompt}", generated, draw.randrange(4) / 3))
    return found


def a_run(found: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    run = {"schema": SCHEMA, **{name: EMPTY[kind] for name, kind in KEYS.items()}, "outcomes": found}
    return run | {"data": {"sha256": "a", "skip": 0}, "model": {"fingerprint": "m"}} | changes


def contrast(first: dict[str, Any], second: dict[str, Any], **options: Any) -> Contrast:
    [found] = compare_runs([("one", first), ("two", second)], **options).contrasts
    return found


def of(found: Contrast, measure: str, mode: str = "generated") -> Difference:
    [row] = [row for row in found.differences if (row.measure, row.mode) == (measure, mode)]
    return row


# -- what is tested ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["generated", "teacher_forced"])
@pytest.mark.parametrize("measure", COUNTS)
def test_a_figure_is_the_mean_over_records_or_cases_and_its_p_that_of_scipy(measure: str, mode: str) -> None:
    first, second = outcomes(1, 0.3), outcomes(2, 0.9)
    random.Random(0).shuffle(second)
    row = of(contrast(a_run(first), a_run(second)), measure, mode)
    means = []
    for found in (first, second):
        values = defaultdict(list)
        for outcome in found:
            if outcome["measure"] == measure:
                case = outcome["prompt"] if measure in OF_A_CASE else ""
                values[outcome["record"], case].append(outcome[mode])
        means.append({record: fmean(own) for record, own in values.items()})
    changes = np.array([means[1][record] - means[0][record] for record in means[0]])
    assert (row.records, row.prompts) == (len(changes), 12 * COUNTS[measure])
    assert (len(changes) == 12) == (measure not in OF_A_CASE)
    assert (row.reference, row.value) == pytest.approx(tuple(fmean(own.values()) for own in means))
    assert row.difference == pytest.approx(changes.mean())
    if len(changes) == 12:  # few enough for every sign to be tried
        reference = stats.permutation_test((changes,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert row.p == pytest.approx(reference.pvalue)
    assert row.interval is not None and row.interval[0] <= row.difference <= row.interval[1]


def test_all_tests_of_all_runs_are_adjusted_together() -> None:
    runs = [(f"run{i}", a_run(outcomes(i, right))) for i, right in enumerate((0.1, 0.9, 1.0))]
    found = compare_runs(runs)
    rows = [row for each in found.contrasts for row in each.differences]
    assert len(rows) == found.to_dict()["tests"] == 2 * 2 * len(COUNTS)
    smallest = min(rows, key=lambda row: row.p)
    assert smallest.p_holm == pytest.approx(min(1, len(rows) * smallest.p))
    assert all(row.p_holm >= row.p for row in rows)
    assert smallest.p < of(contrast(runs[0][1], runs[1][1]), "locality").p_holm


def test_a_run_against_itself_differs_in_nothing() -> None:
    run = a_run(outcomes(3, 0.5))
    found = contrast(run, run)
    assert (found.only_reference, found.only_run, found.warnings) == (0, 0, ())
    for row in found.differences:
        assert (row.difference, row.interval, row.p, row.p_holm) == (0.0, (0.0, 0.0), 1.0, 1.0)


def test_runs_that_differ_by_chance_are_not_told_apart_and_others_are() -> None:
    alike = contrast(a_run(outcomes(4, 0.6, records=60)), a_run(outcomes(5, 0.6, records=60)))
    assert all(row.p_holm > 0.05 for row in alike.differences)
    unlike = contrast(a_run(outcomes(4, 0.1, records=60)), a_run(outcomes(5, 1.0, records=60)))
    assert of(unlike, "generalization").p_holm < 0.01 < 0.05 < of(unlike, "generalization", "teacher_forced").p_holm


def test_what_rounding_leaves_is_no_difference() -> None:
    thirds = [0.1, 0.2, 0.3]
    first = [asked(f"r{i}", "locality", f"p{j}", 1, v) for i in range(20) for j, v in enumerate(thirds)]
    second = [asked(f"r{i}", "locality", f"p{j}", 1, v) for i in range(20) for j, v in enumerate((0.3, 0.1, 0.2))]
    assert of(contrast(a_run(first), a_run(second)), "locality", "teacher_forced").p == 1.0


def test_the_same_runs_give_the_same_bytes_and_swapped_the_opposite() -> None:
    runs = [("one", a_run(outcomes(1, 0.3, records=40))), ("two", a_run(outcomes(2, 0.6, records=40)))]
    assert json.dumps(compare_runs(runs).to_dict()) == json.dumps(compare_runs(runs).to_dict())
    forth, back = (compare_runs(order).contrasts[0].differences for order in (runs, runs[::-1]))
    for a, b in zip(forth, back, strict=True):
        assert (a.difference, a.p) == (-b.difference, b.p)


# -- what is paired ---------------------------------------------------------------------------


def test_outcomes_without_a_partner_are_counted_and_left_out() -> None:
    first, second = outcomes(1, 0.3), outcomes(2, 0.9)
    extra = [asked("r0", "ood", "p0", 1, 1), asked("r99", "reliability", "p0", 1, 1)]
    whole = contrast(a_run(first), a_run(second))
    found = contrast(a_run(first + extra), a_run(second + [asked("r0", "reliability", "another", 1, 1)]))
    assert (found.matched, found.only_reference, found.only_run) == (len(first), 2, 1)
    assert found.differences == whole.differences
    [warning] = found.warnings
    assert "not asked the same" in warning and "2 of the reference and 1 of the run" in warning


def test_a_prompt_that_a_record_is_asked_twice_is_paired_by_its_turn() -> None:
    first = [asked("r0", "ood", "p", 1, 1), asked("r0", "ood", "p", 0, 0)]
    found = contrast(a_run(first), a_run([*first, asked("r0", "ood", "p", 0, 0)]))
    assert (found.matched, found.only_run) == (2, 1)
    assert of(found, "ood").difference == 0.0 and of(found, "ood").interval is None


def test_measures_stand_in_their_order() -> None:
    names = ["multi_hop", "locality", "conflict", "free_generalization", "reliability", "generalization"]
    run = a_run([asked("r", name, "p", 1, 1) for name in names])
    order = [row.measure for row in contrast(run, run).differences[::2]]
    assert order == ["reliability", "generalization", "free_generalization", "locality", "conflict", "multi_hop"]


# -- what is said -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"sha256": "b", "skip": 0}}, r"other data \(sha256 differ\): 120 outcomes are compared, 0 of"),
        ({"data": {"sha256": "a", "skip": 5}, "edits": 3}, r"other data \(skip, edits differ\)"),
        ({"model": {"fingerprint": "n"}}, "another base model"),
        ({"environment": {"cpu": "Z80", "threads": 1}}, r"another machine \(cpu, threads differ\)"),
    ],
)
def test_runs_that_are_not_alike_are_compared_with_a_warning(changes: dict[str, Any], said: str) -> None:
    found = outcomes(1, 0.3)
    [warning] = contrast(a_run(found), a_run(found, **changes)).warnings
    assert re.search(said, warning)


def test_another_expected_answer_is_warned_of_but_for_locality() -> None:
    first = [asked("r0", "reliability", "p", 1, 1), asked("r0", "locality", "p", 1, 1)]
    second = [outcome | {"expected": "z"} for outcome in first]
    [warning] = contrast(a_run(first), a_run(second)).warnings
    assert warning.startswith("1 of the prompts compared expect another answer")


def test_what_cannot_be_compared_is_refused() -> None:
    run = a_run(outcomes(1, 0.3))
    with pytest.raises(ConfigError, match="takes two or more"):
        compare_runs([("one", run)])
    with pytest.raises(ConfigError, match="one: is there 2 times"):
        compare_runs([("one", run), ("two", run), ("one", run)])
    for other in ([], [outcome | {"record": "other"} for outcome in run["outcomes"]]):
        with pytest.raises(ConfigError, match="two shares no outcome with one"):
            compare_runs([("one", run), ("two", a_run(other))])


# -- what is not tested -----------------------------------------------------------------------


def routing(auroc: Any, **more: Any) -> dict[str, Any]:
    return {"classes": {"generic": {"auroc": auroc, "auroc_ci": [0.5, 1.0]}, **more}, "false_routes_per_million": 12}


def test_routing_and_cost_stand_beside_with_their_own_intervals() -> None:
    found = outcomes(1, 0.3)
    first = a_run(found, routing=routing(0.8, chat={"auroc": 0.9}), cpu_seconds_per_edit=0.5)
    second = a_run(found, routing=routing(0.9), cpu_seconds_per_edit=0.25)
    auroc, false, seconds = contrast(first, second).figures
    assert (auroc.name, auroc.reference, auroc.value) == ("routing AUROC, generic", 0.8, 0.9)
    assert auroc.interval == auroc.reference_interval == (0.5, 1.0)
    assert (false.difference, false.interval) == (0.0, None)
    assert (seconds.name, seconds.difference) == ("CPU seconds per edit", -0.25)
    for empty in (
        None,
        {},
        {"classes": None},
        {"classes": [1]},
        {"classes": 1},
        routing(None) | {"false_routes_per_million": "x"},
    ):
        assert [f.name for f in contrast(first, a_run(found, routing=empty)).figures][-1] == "CPU seconds per edit"


# -- the command ------------------------------------------------------------------------------


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.command()(compare)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def saved(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_the_command_shows_tables_and_ends_with_json(tmp_path: Path) -> None:
    base, other = outcomes(1, 0.1, records=40), outcomes(2, 1.0, records=40)
    files = [
        saved(tmp_path / "merge.json", a_run(base, routing=routing(0.8))),
        saved(tmp_path / "retrieve.json", a_run(other, routing=routing(0.9), edits=2)),
        saved(tmp_path / "again.json", a_run(base)),
    ]
    result = run(*files, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    names = [(name, run) for name, run in zip(("merge", "retrieve", "again"), map(read, files), strict=True)]
    assert found == json.loads(json.dumps(compare_runs(names).to_dict()))
    assert "retrieve against merge" in result.stdout and "again against merge" in result.stdout
    assert "multi_hop" in result.stdout and "0.800 [0.500, 1.000]" in result.stdout and "<0.001" in result.stdout
    assert "0 of 8 differences are significant" in result.stdout
    [warning] = result.stderr.splitlines()
    assert warning.startswith("WARNING: retrieve: on other data (edits differ): 400 outcomes are compared, 0 of")
    assert run(*files).stdout == "".join(result.stdout.splitlines(keepends=True)[:-1])


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_equal_file_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    files = [saved(tmp_path / name / "run.json", a_run(outcomes(1, 0.5))) for name in ("a", "b")]
    found = json.loads(run(*files, "--json").stdout.splitlines()[-1])
    assert (found["reference"], found["contrasts"][0]["run"]) == tuple(map(str, files))


def test_the_command_refuses_numbers_that_no_float_holds(tmp_path: Path) -> None:
    whole = a_run(outcomes(1, 0.5))
    file = saved(tmp_path / "run.json", whole)
    for wrong in (whole | {"cpu_seconds_per_edit": 10**400}, a_run(outcomes(1, 0.5), routing=routing(10**400))):
        result = run(file, saved(tmp_path / "other.json", wrong))
        assert isinstance(result.exception, ConfigError) and "401 characters" in str(result.exception)


def test_the_command_refuses_what_is_no_run(tmp_path: Path) -> None:
    file = saved(tmp_path / "run.json", a_run(outcomes(1, 0.5)))
    for arguments, said in (((file,), "two or more"), ((file, tmp_path / "gone"), "gone"), ((file, file), "2 times")):
        result = run(*arguments)
        assert isinstance(result.exception, ConfigError) and said in str(result.exception)
        assert result.stdout == ""
