"""Takes edits from a file into a store, batch by batch, and checks after each batch that all edits so far hold.

    python examples/stream_edits.py
    python examples/stream_edits.py --model FOLDER_OR_HUB_ID --edits edits.jsonl --batch 16

Without --edits it writes twelve edits of facts that the shipped model knows.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import wise
from wise.demo import model_path
from wise.demo.records import write_records


def main(folder: str, edits: list[wise.Edit], batch: int, place: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = wise.wrap(AutoModelForCausalLM.from_pretrained(folder), tokenizer)
    with wise.Store.open(place) as store:
        store.enqueue(edits, key="examples/stream_edits.py")  # durable from here on
        version = 0
        while tickets := store.claim(limit=batch):
            report = model.edit([ticket.edit for ticket in tickets])
            version = store.commit(
                tickets,
                model.state,
                parent=version,
                config=model.wise_config,
                base=model.fingerprint(),
                outcomes={outcome.id: vars(outcome) for outcome in report.outcomes},
            ).number
            answers = model.ask([edit.prompt for edit in model.edits])
            held = sum(edit.target in answer.text for edit, answer in zip(model.edits, answers, strict=True))
            print(f"version {version}: {len(model.edits)} edits are live, {held} of them are answered as edited")
            assert held == len(model.edits)

        # Enqueueing the same edits under the same key again changes nothing.
        store.enqueue(edits, key="examples/stream_edits.py")
        assert not store.claim()
        assert not store.check().problems
        store.rollback(1, author="example", reason="shows that it can be done")
        assert store.read().state.edit_ids == store.read(1).state.edit_ids


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(model_path()), help="folder or hub id of a causal LM")
    parser.add_argument("--edits", type=Path, help="file of edits")
    parser.add_argument("--batch", type=int, default=4, help="edits that are trained together")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        file = given.edits or Path(work) / "edits.jsonl"
        if given.edits is None:
            write_records(file, 12, seed=0)
        main(given.model, wise.read_edits(file, limit=None if given.edits else 12), given.batch, Path(work) / "store")
