"""A live edit is asked again if a new one may have changed its answer, and dropped if it does not hold any more."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import WordReader, text, tiny_model, tiny_tokenizer

import wise
from wise.training.report import VERIFIED

SUBJECT = text([40, 41])
ASKED = text([5, 40, 41, 9])
"""What the new edit asks."""


def wrapped() -> wise.WiseModel:
    base = tiny_model("llama", hidden_size=64, intermediate_size=256, num_hidden_layers=4)
    config = wise.WiseConfig(mode="hybrid", terminator="", bos=False, layer=0)
    return wise.wrap(base, tiny_tokenizer(), config, reader=WordReader())


def old(prompt: str, **fields: Any) -> wise.Edit:
    return wise.Edit(id="old", prompt=prompt, subject=text([30, 31]), target=text([60, 61]), **fields)


@pytest.mark.parametrize("target", [70, 72, 74])
@pytest.mark.parametrize(
    ("edit", "asked_again"),
    [
        (old(f"{ASKED} {text([30, 31, 20])}"), True),  # the answer to its first part goes on in the middle of it
        (old(text([30, 31, 20]), paraphrases=(f"{ASKED} {text([30, 31, 21, 22])}",)), True),
        (old(f"{text([30, 31, 20])}"), False),
        (old(f"{text([9, 41, 40])} {text([30, 31, 20])}"), False),  # in other words
    ],
)
def test_every_live_edit_is_said_after_each_call(
    edit: wise.Edit, asked_again: bool, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wrapped()
    assert model.edit(edit).count(VERIFIED) == 1
    asked: list[str] = []
    ask = type(model.trainer.verifier).ask

    def noted(self: Any, state: Any, edits: Any, *given: Any, **more: Any) -> Any:
        asked.extend(edit.id for edit in edits)
        return ask(self, state, edits, *given, **more)

    monkeypatch.setattr(type(model.trainer.verifier), "ask", noted)
    report = model.edit(wise.Edit(id="new", prompt=ASKED, subject=SUBJECT, target=text([target])))
    assert report.count(VERIFIED) == 1 and ("old" in asked) is asked_again
    monkeypatch.undo()
    verdicts = model.trainer.verifier.ask(model.state, model.edits, model.serving)
    assert all(verdict.keeps("listed") for verdict in verdicts.values())
    assert ("old" in model.state.edit_ids) is ("old" not in report.dropped)
