"""The ablation of the hybrid engine's slots: kind, writer, places, block, fitting, under a router that is always right.

    python scripts/bench_slots.py --model MODEL --data known.jsonl --skip 520 --edits 100

Each line edits the base anew and then forces the right edit's gate open where its slot speaks
(`wise.eval.routing.oracle`): what is not said then is not the router's fault. `--long` edits records with long targets
too. Tables go to stdout as Markdown. One process, one thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import wise
from wise.errors import ConfigError
from wise.eval.routing.oracle import measure_oracle
from wise.eval.work import Work
from wise.memory.slot import EditSlot

KINDS = [("value", "gradient")]
KINDS += [(slot, how) for slot in ("rank-one", "low-rank") for how in ("gradient", "closed-form", "closed-form-steps")]
PLACES = ("first", "needed", "all")
MEASURES = ("reliability", "generalization", "free_generalization")
HEAD = ("slot", "writer", "places", "block", "unlike prompts", "held at once", "held", "oracle reliability")
HEAD += ("generalization", "free generalization", "places per edit", "KiB per edit", "CPU-s per edit")
LONG_HEAD = ("slot", "places", "edits", "tokens of a target", "held at once", "held", "oracle reliability")
LONG_HEAD += ("places per token", "KiB per edit", "CPU-s per edit")


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    records = wise.read_records(options.data)[options.skip :][: options.edits]
    show(HEAD, (line(options.model, records, **settings) for settings in ablation(options.model)))
    if options.long:
        long = wise.read_records(options.long)
        settings = [{"slot": "value"}, {"slot": "low-rank"}]
        show(LONG_HEAD, (long_line(options.model, long, options.long_edits, **each) for each in settings))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="records")
    parser.add_argument("--skip", type=int, default=0, help="records at the head of the file that are left alone")
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--long", help="records whose targets are long")
    parser.add_argument("--long-edits", type=int, default=8)
    return parser.parse_args()


def ablation(model: str) -> Iterator[dict[str, Any]]:
    """The settings of each line."""
    for places in PLACES:
        for slot, how in KINDS:
            if (how, places) != ("closed-form", "all"):  # refused: a closed form is of one place
                yield {"slot": slot, "writer": how, "places": places}
    depth, chosen = wrapped(model).projection.depth, wrapped(model).projection.layer
    yield from ({"layer": layer} for layer in range(1, depth) if layer != chosen)
    yield from ({"unlike": unlike} for unlike in (0, 2, 3))


def wrapped(model: str, **settings: Any) -> wise.WiseModel:
    base, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    return wise.wrap(base.eval(), tokenizer, wise.WiseConfig(mode="hybrid", **settings))


def line(model: str, records: Sequence[wise.Record], **settings: Any) -> tuple[object, ...]:
    edited, report, seconds = written(model, records, settings)
    config = edited.wise_config
    about = (config.slot, config.writer, config.places, edited.projection.layer, config.unlike)
    found = ceiling(edited, records)
    oracle = [short(found[measure]) for measure in MEASURES]
    places = sum(count(edited)) / max(1, len(edited.edits))
    return (*about, *held(report), *oracle, f"{places:.2f}", kept(edited), f"{seconds:.2f}")


def long_line(model: str, records: Sequence[wise.Record], count_of: int, **settings: Any) -> tuple[object, ...]:
    """Of the first records that fit the base's context."""
    encoder = wrapped(model).encoder
    fitting = [record for record in records if encoder.tokens(record.edit) < encoder.context][:count_of]
    edited, report, seconds = written(model, fitting, settings)
    lengths = {r.edit.id: len(encoder.target(r.edit.prompt, r.edit.target)) for r in fitting}
    tokens = sum(lengths[edit.id] for edit in edited.edits)
    sizes = sorted(lengths.values())
    about = (edited.wise_config.slot, edited.wise_config.places, len(fitting), f"{sizes[0]} to {sizes[-1]}")
    share = f"{sum(count(edited)) / tokens:.2f}" if tokens else "-"
    reliability = short(ceiling(edited, fitting)["reliability"])
    return (*about, *held(report), reliability, share, kept(edited), f"{seconds:.2f}")


def written(
    model: str, records: Sequence[wise.Record], settings: dict[str, Any]
) -> tuple[wise.WiseModel, Any, float]:
    """The edited model, its report, and CPU-seconds an edit."""
    edited = wrapped(model, **settings)
    edited.prepare()
    begun = time.process_time()
    report = edited.edit([record.edit for record in records])
    return edited, report, (time.process_time() - begun) / len(records)


def ceiling(edited: wise.WiseModel, records: Sequence[wise.Record]) -> dict[str, float | None]:
    """What an oracle for a router reaches; nothing, where no edit holds."""
    try:
        return measure_oracle(edited, records, work=Work())
    except ConfigError:
        return dict.fromkeys(MEASURES, 0.0)


def held(report: Any) -> tuple[int, int]:
    """Edits that the model says: as they were written first, and after those that failed were tried harder."""
    verified = [outcome for outcome in report.outcomes if outcome.status == "verified"]
    return sum(len(outcome.tried) == 1 for outcome in verified), len(verified)


def count(edited: wise.WiseModel) -> list[int]:
    """At how many places each slot speaks."""
    return [len(slot.places) for slot in edited.state.slots if isinstance(slot, EditSlot)]


def kept(edited: wise.WiseModel) -> str:
    return f"{edited.memory_bytes / 1024 / max(1, len(edited.edits)):.1f}"


def short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def show(head: Sequence[object], rows: Iterator[tuple[object, ...]]) -> None:
    """Line by line, as they are made."""
    for cells in (head, ["---"] * len(head)):
        sys.stdout.write(f"| {' | '.join(map(str, cells))} |\n")
    for cells in rows:
        sys.stdout.write(f"| {' | '.join(map(str, cells))} |\n")
        sys.stdout.flush()
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
