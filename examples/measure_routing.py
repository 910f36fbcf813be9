"""Measures how often the router opens for other wordings of an edit, and how often for questions about something else.

    python examples/measure_routing.py
    python examples/measure_routing.py --model FOLDER_OR_HUB_ID --data records.jsonl --edits 50

Without --data it makes records of facts that the shipped model knows. `wise eval --routing` measures far more.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import wise
from wise.demo import model_path
from wise.demo.records import write_records


def fired(model: wise.WiseModel, record: wise.Record, prompts: tuple[str, ...]) -> list[bool]:
    """For each prompt: whether the edit of this record was active in the answer."""
    return [record.edit.id in answer.routes.fired for answer in model.ask(prompts)] if prompts else []


def main(folder: str, records: list[wise.Record]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = wise.wrap(AutoModelForCausalLM.from_pretrained(folder), tokenizer)
    report = model.edit([record.edit for record in records])
    live = {edit.id for edit in model.edits}
    print(f"{report.count('verified')} of {len(records)} edits verified")

    wordings = [hit for r in records if r.edit.id in live for hit in fired(model, r, r.paraphrases)]
    others = [hit for r in records if r.edit.id in live for hit in fired(model, r, r.neighbours)]
    print(f"opens for {sum(wordings)} of {len(wordings)} other wordings")
    print(f"opens for {sum(others)} of {len(others)} questions about something else")
    assert sum(wordings) >= 0.9 * len(wordings) and sum(others) <= 0.1 * len(others)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(model_path()), help="folder or hub id of a causal LM")
    parser.add_argument("--data", type=Path, help="file of records")
    parser.add_argument("--edits", type=int, default=12, help="records to take from it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        file = given.data or Path(work) / "records.jsonl"
        if given.data is None:
            write_records(file, given.edits, seed=0)
        main(given.model, wise.read_records(file, limit=given.edits))
