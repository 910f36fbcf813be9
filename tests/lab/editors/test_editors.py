"""What every editor of the literature promises: the base comes back bit for bit, and nothing is half done."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from editing_contexts import demo_context, records, tiny_context, tiny_edits
from tiny import same_tensors

from wise.edits import Edit, Record
from wise.errors import ConfigError, EditError
from wise.lab.bench.benchmark import candidates
from wise.lab.editors.base import Applied, Baseline
from wise.lab.editors.registry import BASELINES, baseline_class, make_baseline
from wise.lab.eval.candidates import EDITORS, all_settings, search_space
from wise.training.generation import greedy
from wise.training.report import SUPERSEDED, VERIFIED

QUICK: dict[str, dict[str, Any]] = {
    "mend": {"steps": 1, "batch": 1, "rank": 4},
    "ke": {"steps": 1, "batch": 1, "condition": 4, "hidden": 4},
}
"""Settings with which an editor is done in no time; what it then writes need not hold."""
each = pytest.mark.parametrize("name", BASELINES)


def bags_of_words(texts: Sequence[str]) -> torch.Tensor:
    """Sentence embeddings without a model for them: texts that share words are alike."""
    rows = [torch.bincount(torch.tensor([int(word[1:]) for word in text.split()]), minlength=100) for text in texts]
    return torch.nn.functional.normalize(torch.stack(rows).float(), dim=-1)


@pytest.fixture(autouse=True)
def embeddings_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wise.lab.editors.in_context.published_encoder", lambda: SimpleNamespace(read=bags_of_words))


def training() -> tuple[Record, ...]:
    return tuple(
        Record(edit=edit, paraphrases=(f"w90 {edit.prompt}",), neighbours=(f"w6 w{50 + i} w7",))
        for i, edit in enumerate(tiny_edits(6, first=20))
    )


def opened(name: str, model_type: str = "llama", **given: Any) -> Baseline[Any]:
    context = tiny_context(model_type, training=training(), **given)
    return make_baseline(name, context, QUICK.get(name, {}))


def answers(editor: Any, prompts: Sequence[str]) -> list[list[int]]:
    ids = [editor.encoder.prompt(prompt) for prompt in prompts]
    return greedy(editor.model, ids, stops=editor.encoder.stops, max_new_tokens=6)


def tensors_of(state: Any) -> list[torch.Tensor]:
    """All tensors of an editor's state, which is nested in its own way."""
    if isinstance(state, torch.Tensor):
        return [state.clone()]
    parts = state.values() if isinstance(state, dict) else vars(state).values() if hasattr(state, "__dict__") else state
    return [tensor for part in parts if not isinstance(part, int) for tensor in tensors_of(part)]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(torch.tensor([[1, 5, 10, 40, 7, 8]]), use_cache=False).logits
    return out


@each
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt"])
def test_the_base_comes_back_bit_for_bit(name: str, model_type: str) -> None:
    context = tiny_context(model_type, training=training())
    model = context.model
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    modules = dict(model.named_modules())
    clean = logits(model)
    editor = make_baseline(name, context, QUICK.get(name, {}))
    editor.edit(tiny_edits(2))
    editor.edit(tiny_edits(1, first=2))
    with editor.disabled() as base:
        assert torch.equal(logits(base), clean)
    assert editor.unwrap() is model
    assert same_tensors(dict(model.state_dict()), before)
    assert {key: id(module) for key, module in model.named_modules()} == {k: id(m) for k, m in modules.items()}
    assert torch.equal(logits(model), clean)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@each
def test_an_edit_that_breaks_down_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = opened(name)
    editor.edit(tiny_edits(1))
    edited, before = logits(editor.model), tensors_of(editor.state)
    apply = editor._apply

    def broken(edits: Sequence[Edit], progress: Callable[[int], None]) -> list[Applied]:
        apply(edits, progress)
        raise RuntimeError("halfway")

    monkeypatch.setattr(editor, "_apply", broken)
    with pytest.raises(RuntimeError, match="halfway"):
        editor.edit(tiny_edits(1, first=1))
    assert torch.equal(logits(editor.model), edited)
    after = tensors_of(editor.state)
    assert len(after) == len(before) > 0 and all(map(torch.equal, after, before))
    assert [edit.id for edit in editor.edits] == ["e0"]


@each
def test_the_same_seed_makes_the_same_bytes(name: str) -> None:
    def made() -> list[torch.Tensor]:
        editor = opened(name)
        state = torch.random.get_rng_state()
        editor.edit(tiny_edits(2))
        assert torch.equal(torch.random.get_rng_state(), state), "the global random state moved"
        return tensors_of(editor.state)

    first, second = made(), made()
    assert first and len(first) == len(second) and all(map(torch.equal, first, second))


@each
def test_in_bf16_the_base_stays_bf16(name: str) -> None:
    editor = opened(name, dtype=torch.bfloat16)
    editor.edit(tiny_edits(1))
    assert {parameter.dtype for parameter in editor.model.parameters()} == {torch.bfloat16}
    assert torch.isfinite(logits(editor.model)).all()
    editor.unwrap()


@each
def test_reports_and_refusals(name: str) -> None:
    editor = opened(name)
    first, second = tiny_edits(2)
    report = editor.edit([first, Edit(prompt=first.prompt, target="w33", subject=first.subject, id="later"), second])
    assert [outcome.status == SUPERSEDED for outcome in report.outcomes] == [True, False, False]
    assert [edit.id for edit in editor.edits] == ["later", "e1"]
    assert report.seconds > 0
    with pytest.raises(EditError, match="'later' was applied already"):
        editor.edit(Edit(prompt="w9 w9", target="w1", id="later", subject="w9"))
    with pytest.raises(EditError, match="given no edits"):
        editor.edit([])
    if editor.needs_subject:
        with pytest.raises(EditError, match="names none"):
            editor.edit(Edit(prompt="w5 w6", target="w30"))


@each
def test_settings_are_checked_and_searched(name: str) -> None:
    with pytest.raises(ConfigError, match="setting 'sed' is not known; did you mean 'seed'"):
        all_settings(name, {"sed": 1})
    with pytest.raises(ConfigError, match="seed=-1"):
        all_settings(name, {"seed": -1})
    json.dumps(all_settings(name, {}), allow_nan=False)
    assert search_space(name), "nothing to search: an unfair comparison"
    tried = candidates(name, 4, seed=0)
    assert tried[0] == {} and len(tried) == 4
    for settings in tried:
        all_settings(name, settings)
    assert tried == candidates(name, 4, seed=0) != candidates(name, 4, seed=1)


def test_editors_are_the_registered_ones() -> None:
    assert {name for name, editor in EDITORS.items() if editor.kind == "baseline"} == set(BASELINES)
    assert all(issubclass(baseline_class(name), Baseline) for name in BASELINES)
    with pytest.raises(ConfigError, match="did you mean 'rome'"):
        baseline_class("rom")


WRONG: dict[str, list[dict[str, Any]]] = {
    "ft-l": [{"steps": 0}, {"learning_rate": 0.0}, {"norm_constraint": 0.0}, {"enough": -1}, {"layer": 99}],
    "ft-m": [{"steps": 0}, {"learning_rate": 0.0}, {"norm_constraint": 0.0}, {"enough": -1}, {"layer": 99}],
    "ft-ewc": [{"strength": -1.0}, {"fisher_tokens": 1}, {"fisher_length": 1}, {"steps": 0}],
    "rome": [{"steps": 0}, {"clamp": 0.0}, {"learning_rate": 0.0}, {"prefixes": -1}, {"layer_fraction": 1.0}],
    "memit": [{"moment_weight": 0.0}],
    "alphaedit": [{"free_share": 0.0}, {"free_share": 1.5}, {"damping": 0.0}, {"layers": (2, 1)}],
    "mend": [{"rank": 0}, {"edit_weight": 0}, {"edit_rate": -1.0}, {"rate_rate": 0}, {"blocks": 0},
             {"steps": 0}, {"batch": 1.5}, {"held_out": 0.0}, {"held_out": 0.9}, {"learning_rate": float("nan")},
             {"whole_ffn": None}],
    "ke": [{"condition": 0}, {"hidden": 1.5}, {"rate": 0}, {"margin": 0}, {"multiplier": -1.0}, {"multiplier_rate": 0}],
    "kn": [{"integration_steps": 0}, {"threshold": 0.0}, {"share": 1.5}, {"fewest": 0}, {"most": 1},
           {"new_scale": -1.0}],
    "grace": [{"epsilon": 0.0}, {"learning_rate": -1.0}, {"steps": 0}, {"enough": -1}],
    "memoir": [{"active": 0.0}, {"tau": 1.5}, {"learning_rate": 0}, {"steps": 0}, {"contexts": -1}],
    "icl": [{"facts": 0}, {"threshold": 2.0}, {"demonstrations": -1}],
}  # fmt: skip


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name, all_ in WRONG.items() for wrong in all_])
def test_settings_out_of_range_are_refused(name: str, wrong: dict[str, Any]) -> None:
    (setting,) = wrong
    with pytest.raises(ConfigError, match=f"{setting}="):
        make_baseline(name, tiny_context(), wrong)
    assert set(WRONG) == set(BASELINES)


MOMENTS = {"tokens": 600, "prefixes": 2}
SAID: dict[str, tuple[dict[str, Any], int, int]] = {
    "ft-l": ({}, 2, 0),
    "ft-m": ({}, 2, 0),
    "ft-ewc": ({"fisher_tokens": 256}, 1, 0),
    "rome": (MOMENTS, 1, 1),
    "memit": (MOMENTS, 2, 1),
    "alphaedit": (MOMENTS, 2, 1),
    "kn": ({"prefixes": 2, "new_scale": 8.0}, 1, 0),
    "grace": ({}, 3, 0),
    "memoir": ({"contexts": 2}, 2, 0),
}
"""Editor -> settings, how many records are edited, and how many are left out first."""


@pytest.mark.parametrize("name", SAID)
def test_the_shipped_model_says_what_was_edited(name: str) -> None:
    settings, count, skip = SAID[name]
    learning: dict[str, Any] = {"training": tuple(records(20, skip=2))} if name == "memoir" else {}
    if settings is MOMENTS:
        learning["texts"] = tuple(record.edit.prompt for record in records(120, skip=100))
    editor = make_baseline(name, demo_context(**learning), settings)
    edits = [record.edit for record in records(count, skip=skip)]
    # A later call of these may break an earlier edit, so the last call is looked at.
    calls = [[edit] for edit in edits] if name in ("ft-l", "ft-m") else [edits]
    try:
        outcomes = [editor.edit(call).outcomes for call in calls][-1]
        assert {outcome.status for outcome in outcomes} == {VERIFIED}
        if name == "rome":
            assert outcomes[0].loss is not None and outcomes[0].loss < 1
            assert 1 <= outcomes[0].steps <= editor.settings.steps
    finally:
        editor.unwrap()
