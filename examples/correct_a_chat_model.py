"""Corrects two facts in a model, asks before and after, deletes one edit, saves the memory and loads it again.

    python examples/correct_a_chat_model.py
    python examples/correct_a_chat_model.py --model HuggingFaceTB/SmolLM2-135M-Instruct

Without --model it uses the model that ships with wise, which completes texts and needs no download.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import wise
from wise.demo import model_path

EDITS = [
    wise.Edit(prompt="The capital of France is", target="Lyon", subject="France"),
    wise.Edit.from_text("The currency of Japan is euro.", subject="Japan", aliases=["Nippon"]),
]
QUESTIONS = ["What is the capital of France?", "The currency of Nippon is", "The capital of Spain is"]


def main(folder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = wise.wrap(AutoModelForCausalLM.from_pretrained(folder), tokenizer)

    before = [answer.text for answer in model.ask(QUESTIONS)]
    report = model.edit(EDITS)
    assert not report.failed, report.outcomes
    after = [answer.text for answer in model.ask(QUESTIONS)]
    for question, old, new in zip(QUESTIONS, before, after, strict=True):
        print(f"{question}\n    before: {old}\n    after:  {new}")
    assert "Lyon" in after[0] and "euro" in after[1]
    assert after[2] == before[2]  # no edit asks for it

    snapshot = model.snapshot()
    model.delete(model.edits[0].id)
    assert model.ask(QUESTIONS[0])[0].text == before[0]
    model.rollback(snapshot)

    with tempfile.TemporaryDirectory() as place:
        memory = Path(place) / "memory"
        model.save_pretrained(memory)
        again = wise.WiseModel.from_pretrained(memory, model.unwrap(), tokenizer)
        assert [answer.text for answer in again.ask(QUESTIONS)] == after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(model_path()), help="folder or hub id of a causal LM")
    main(parser.parse_args().model)
