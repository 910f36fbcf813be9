"""The tables of BENCHMARKS.md: editors over sizes over files of records, each a run of `wise eval`.

    python scripts/bench_routing.py --model MODEL --runs runs known=known.jsonl counterfact=cf.jsonl --text text.txt

A run that is there already is not made again, and one that was interrupted goes on, so the same command can be
given until all is done. The tables go to stdout as Markdown, each cell `generated / teacher-forced` where it says so.
Every run is one process of one thread; `--jobs` of them stand side by side.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

EDITORS = ("wise-merge", "wise-retrieve")
SIZES = (1, 10, 100, 500)
MEASURES = ("reliability", "generalization", "free_generalization", "locality")

Run = Mapping[str, Any]


def main() -> None:
    options = arguments()
    options.runs.mkdir(parents=True, exist_ok=True)
    wanted = [
        (name, file, editor, size)
        for size in options.sizes
        for name, file in options.data.items()
        for editor in options.editors
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda run: make(run, options), wanted))
    runs = {
        (name, editor, size): json.loads(place(options.runs, name, editor, size).read_text(encoding="utf-8"))
        for name, _, editor, size in wanted
    }
    runs = {key: run for key, run in runs.items() if run["routing"] is not None}  # no edit held: no router to tell of
    for table in (quality_table(runs), routing_table(runs), forms_table(runs), other_table(runs)):
        sys.stdout.write(table + "\n\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", nargs="+", help="NAME=FILE of records")
    parser.add_argument("--model", required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--text", help="running text")
    parser.add_argument("--questions", help="generic questions")
    parser.add_argument("--references", help="texts about objects")
    parser.add_argument("--editors", nargs="+", default=EDITORS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    pairs = [pair.partition("=") for pair in options.data]
    for name, equals, file in pairs:
        if not (name and equals and Path(file).is_file()):
            parser.error(f"{name}{equals}{file}: NAME=FILE was expected, of a file that is there")
    options.data = {name: file for name, _, file in pairs}
    return options


def place(folder: Path, name: str, editor: str, size: int) -> Path:
    return folder / f"{name}-{editor}-{size}.json"


def make(run: tuple[str, str, str, int], options: argparse.Namespace) -> None:
    """One run, in a process of its own, where it is not there yet."""
    name, file, editor, size = run
    output = place(options.runs, name, editor, size)
    if output.exists():
        found = json.loads(output.read_text(encoding="utf-8"))
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        if (found["data"]["sha256"], found["model"]["name"]) != (digest, Path(options.model).name):
            raise SystemExit(f"{output}: was made of other data or another model; delete it, or give another --runs")
        return
    command = [sys.executable, "-m", "wise", "eval", "--model", options.model, "--data", file, "--editor", editor]
    command += ["--edits", str(size), "--threads", "1", "--routing", "--output", str(output)]
    for option in ("text", "questions", "references"):
        if getattr(options, option):
            command += [f"--{option}", getattr(options, option)]
    if size > 1:
        command.append("--retention")
    begun = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr}")
    sys.stderr.write(f"{output.name}: {time.perf_counter() - begun:.0f} s\n")


def quality_table(runs: Mapping[tuple[str, str, int], Run]) -> str:
    head = ("data", "editor", "edits", "live", "reliability", "generalization", "free wordings", "locality (unchanged)")
    head += ("oracle rel. / gen.", "CPU-s per edit", "minutes")
    rows = []
    for (name, editor, size), run in runs.items():
        oracle = run["routing"]["oracle"]
        rows.append(
            (
                name,
                f"`{editor}`",
                size,
                run["routing"]["live_edits"],
                *(f"{short(run['generated'][m])} / {short(run['teacher_forced'][m])}" for m in MEASURES),
                f"{short(oracle['reliability'])} / {short(oracle['generalization'])}",
                f"{run['cpu_seconds_per_edit']:.2f}",
                f"{(run['timing']['editing_seconds'] + run['timing']['measuring_seconds']) / 60:.1f}",
            )
        )
    return markdown(head, rows)


def routing_table(runs: Mapping[tuple[str, str, int], Run]) -> str:
    """AUROC and the share of negatives whose gate opens, class by class."""
    classes = list(dict.fromkeys(name for run in runs.values() for name in run["routing"]["classes"]))
    head = ("data", "editor", "edits", *classes, "false routes / M", "slot / edit top-1", "flips")
    rows = []
    for (name, editor, size), run in runs.items():
        routing = run["routing"]
        cells = [routing["classes"].get(each) for each in classes]
        rows.append(
            (
                name,
                f"`{editor}`",
                size,
                *("-" if c is None else f"{short(c['auroc'])} ({short(c['opened'])})" for c in cells),
                "-" if routing["false_routes_per_million"] is None else f"{routing['false_routes_per_million']:.0f}",
                f"{short(routing['slot_top1'])} / {short(routing['edit_top1'])}",
                short(routing["flips"]),
            )
        )
    return markdown(head, rows)


def forms_table(runs: Mapping[tuple[str, str, int], Run]) -> str:
    """The share of prompts in each form whose gate opens, as it should."""
    forms = list(dict.fromkeys(name for run in runs.values() for name in run["routing"]["positives"]))
    rows = []
    for (name, editor, size), run in runs.items():
        found = [run["routing"]["positives"].get(form) for form in forms]
        rows.append((name, f"`{editor}`", size, *("-" if f is None else short(f["opened"]) for f in found)))
    return markdown(("data", "editor", "edits", *forms), rows)


def other_table(runs: Mapping[tuple[str, str, int], Run]) -> str:
    """CounterFact's probability scores, gold-answer locality, fluency and perplexity."""
    head = ("data", "editor", "edits", "efficacy", "paraphrase", "neighbourhood (base)", "gold locality")
    head += ("entropy (base)", "perplexity, edited / base", "oldest tenth holds")
    rows = []
    for (name, editor, size), run in runs.items():
        known = run["counterfact"]
        scores = ["-"] * 3
        if known is not None:
            scores = [short(known[measure]["score"]) for measure in ("efficacy", "paraphrase", "neighbourhood")]
            scores[2] += f" ({short(known['base']['neighbourhood']['score'])})"
        fluency, perplexity = run["fluency"], run["perplexity"]
        rows.append(
            (
                name,
                f"`{editor}`",
                size,
                *scores,
                short(run["locality"]["gold_generated"]),
                "-" if fluency is None else f"{short(fluency['entropy'])} ({short(fluency['base_entropy'])})",
                "-" if perplexity is None else f"{perplexity['ratio']:.4f}",
                short(run["retention"][-1]["oldest"]) if run["retention"] else "-",
            )
        )
    return markdown(head, rows)


def short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def markdown(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


if __name__ == "__main__":
    main()
