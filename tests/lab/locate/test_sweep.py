"""The layer that is recommended: by what editing there gives, and by nothing else."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from scipy.stats import spearmanr
from tiny import same_tensors, text, tiny_model, tiny_tokenizer

import wise
from wise.errors import ConfigError
from wise.lab.locate import sweep as module
from wise.lab.locate.results import TRACED, Effects, LayerResult, Location, Sweep
from wise.lab.locate.roles import LAST, LAST_SUBJECT, ROLES
from wise.lab.locate.sites import KINDS, check_layers
from wise.lab.locate.sweep import sweep

STATES = [0.1, 0.5, 0.4, 0.2]


def location(layers: int = 4) -> Location:
    """A trace by hand: strongest at layer 1."""
    rows = {LAST_SUBJECT: STATES[:layers], LAST: [0.1 * i for i in range(layers)]}
    mean: list[list[float | None]] = [list(rows.get(role, [None] * layers)) for role in ROLES]
    ci: list[list[list[float] | None]] = [
        [[x - 0.15, x + 0.15] if x is not None else None for x in row] for row in mean
    ]
    effects = Effects(mean=mean, ci=ci, n=[5] * len(ROLES))
    return Location(
        model={"name": "tiny"},
        facts=5,
        skipped={},
        noise=0.1,
        samples=2,
        window=1,
        layers=layers,
        effects=dict.fromkeys(KINDS, effects),
        low_score=0.1,
        high_score=0.9,
        seed=7,
        environment={},
    )


RECORDS = [
    wise.Record(
        edit=wise.Edit(id=f"r{i}", prompt=text([i, i + 10]), target=text([i + 40])), neighbours=(text([80, i]),)
    )
    for i in range(20, 24)
]


@pytest.fixture
def editing(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Editing is not done here: figures by hand, and how it was called."""
    calls: list[dict[str, Any]] = []
    figures = {0: (1.0, 0.2, 0.9), 1: (0.9, 0.4, 0.8), 2: (1.0, 0.7, 0.9), 3: (1.0, 0.6, 1.0)}

    def evaluate(model: Any, tokenizer: Any, records: Any, **options: Any) -> Any:
        calls.append({"records": records, **options})
        layer = options["settings"]["layer"]
        if options["progress"] is not None:
            options["progress"]("edits", 1, 4)
        names = ("reliability", "generalization", "locality")
        generated = dict(zip(names, figures[layer], strict=True))
        failed = ("r20",) if layer == 2 else ()
        return SimpleNamespace(quality=SimpleNamespace(generated=generated), failed=failed, cpu_seconds=2.0)

    monkeypatch.setattr(module, "evaluate", evaluate)
    return calls


def test_the_best_edits_name_the_layer_and_not_the_trace(editing: list[dict[str, Any]]) -> None:
    seen: list[Any] = []
    found = sweep(None, None, RECORDS, location(), first=100, progress=lambda *step: seen.append(step))  # type: ignore[arg-type]
    assert [call["settings"] for call in editing] == [{"layer": i, "seed": 7} for i in range(4)]
    assert all(call["editor"] == "wise-retrieve" for call in editing)
    for record, given in zip(editing[0]["records"], RECORDS, strict=True):
        assert (record.edit, record.paraphrases, record.neighbours) == (given.edit, given.paraphrases, given.neighbours)
        assert not record.generation_prompts  # text that nothing here reads is not sampled
    assert ("layer 2: edits", 1, 4) in seen
    success = [result.success for result in found.results]
    assert success == pytest.approx([2.1 / 3, 2.1 / 3, 2.6 / 3, 2.6 / 3])
    assert found.best.layer == 3  # as good as layer 2, and none failed
    assert found.correlation("trace_effect") == pytest.approx(float(spearmanr(STATES, success).statistic))
    at_last = spearmanr([0.0, 0.1, 0.2, 0.3], success).statistic
    assert found.correlation("trace_effect_last_token") == pytest.approx(float(at_last))
    result = json.loads(json.dumps(location().to_dict() | found.to_dict(), allow_nan=False))
    assert [row["trace_effect"] for row in result["sweep"]] == STATES
    assert result["sweep"][2]["failed"] == 1 and result["sweep"][2]["cpu_seconds_per_edit"] == 0.5
    assert result["sweep_records"] == {"first": 100, "count": 4, "ids": ["r20", "r21", "r22", "r23"]}
    advice = result["recommendation"]
    assert advice["layer"] == 3 and advice["success"] == pytest.approx(2.6 / 3)
    assert set(advice["correlations"]) == set(TRACED)


def test_a_few_layers_say_less(editing: list[dict[str, Any]]) -> None:
    found = sweep(None, None, RECORDS, location(), layers=[2, 0, 2])  # type: ignore[arg-type]
    assert [result.layer for result in found.results] == [0, 2]
    assert found.correlation("trace_effect") is None


def test_a_measure_without_prompts_does_not_count() -> None:
    result = LayerResult(
        layer=0,
        reliability=1.0,
        generalization=None,
        locality=0.5,
        failed=0,
        cpu_seconds_per_edit=0.1,
        effects=dict.fromkeys(TRACED),
    )
    assert result.success == 0.75
    bare = Sweep(results=(result,), records={"first": 0, "count": 1, "ids": ["a"]})
    assert bare.correlation("trace_effect") is None


def test_layers_that_there_are_not_are_refused(editing: list[dict[str, Any]]) -> None:
    assert check_layers(None, 3) == [0, 1, 2]
    for layers in ([3], [-1, 0], []):
        with pytest.raises(ConfigError, match="this model has 3 layers, 0 to 2"):
            check_layers(layers, 3)
    with pytest.raises(ConfigError, match="layers 4: "):
        sweep(None, None, RECORDS, location(), layers=[4])  # type: ignore[arg-type]
    assert not editing


def test_a_model_that_was_edited_at_its_layers_is_what_it_was() -> None:
    model, before = tiny_model("llama"), tiny_model("llama")
    found = sweep(model, tiny_tokenizer(), RECORDS[:2], location(3), layers=[1])
    assert same_tensors(model, before)
    [result] = found.results
    assert (result.layer, found.records["count"]) == (1, 2)
    assert result.reliability is not None and 0 <= result.success <= 1
    assert result.cpu_seconds_per_edit > 0
