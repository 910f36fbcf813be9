"""What MEND and KnowledgeEditor share: the records they train on, the file in which training is kept, what it gives."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from editing_contexts import demo_context, records, tiny_context, tiny_edits, tiny_records

from wise.edits import Edit, Record
from wise.errors import ConfigError
from wise.lab.editors.context import EditingContext
from wise.lab.editors.hypernetwork import HyperEditor
from wise.lab.editors.registry import make_baseline

SMALL = {"mend": {"rank": 4}, "ke": {"condition": 8, "hidden": 8}}
SHORT: dict[str, dict[str, Any]] = {
    "mend": {"steps": 40, "batch": 4, "rank": 32, "learning_rate": 3e-4},
    "ke": {"steps": 40, "batch": 4, "condition": 32, "hidden": 32, "learning_rate": 3e-3, "margin": 0.5},
}
"""Training in seconds."""
each = pytest.mark.parametrize("name", SMALL)


def opened(name: str, context: EditingContext, **settings: Any) -> HyperEditor[Any]:
    editor = make_baseline(name, context, SMALL[name] | settings)
    assert isinstance(editor, HyperEditor)
    return editor


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> EditingContext:
    return demo_context(training=tuple(records(64, skip=16)), cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(params=SMALL)
def trained(demo: EditingContext, request: pytest.FixtureRequest) -> Iterator[HyperEditor[Any]]:
    editor = opened(request.param, demo, **SHORT[request.param])
    editor.prepare()
    yield editor
    editor.unwrap()


@pytest.mark.slow
def test_edits_of_the_shipped_model_are_generated(trained: HyperEditor[Any]) -> None:
    reports = []
    for record in records(4):
        trained.restore(trained.original)
        trained.edits = ()
        reports.append(trained.edit(record.edit))
    least = {"mend": 3, "ke": 2}[trained.kind]
    assert sum(report.outcomes[0].status == "verified" for report in reports) >= least


def test_training_comes_from_the_cache_bit_for_bit(
    trained: HyperEditor[Any], demo: EditingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(trained), "_trained", lambda self: pytest.fail("trained although it was kept"))
    edits = [record.edit for record in records(2)]
    trained.edit(edits)
    weights = trained.unwrap() and dict(trained.weights)
    again = opened(trained.kind, demo, **SHORT[trained.kind])
    again.edit(edits)
    again.unwrap()
    assert all(torch.equal(weights[name], again.weights[name]) for name in weights)


def test_training_pays_on_records_never_seen(trained: HyperEditor[Any]) -> None:
    plain = opened(trained.kind, demo_context(training=tuple(records(16))), **SHORT[trained.kind])
    examples, order = plain.examples(), random.Random(0)
    samples = [plain._sample(examples, [example], order) for example in examples]
    plain.network = plain.untrained()
    before = plain.measured(samples)
    edit, locality = trained.measured(samples)
    assert trained.merit(edit, locality) < plain.merit(*before)
    if trained.kind != "mend":
        return
    # The same edits by plain gradient steps, at whatever rate, move what is beside them more for the same success.
    assert edit < 0.25 * before[0]
    for rate in (0.03, 0.06, 0.12, 0.25, 0.5):
        with torch.no_grad():
            plain.network.alpha.fill_(rate)
        plain_edit, plain_locality = plain.measured(samples)
        assert plain_edit > edit or plain_locality > locality
    begun = dict(trained.network.state_dict())
    begun |= {name: tensor for name, tensor in trained.untrained().state_dict().items() if "moments" not in name}
    plain.network.load_state_dict(begun)  # nothing learned but the moments
    assert plain.merit(*plain.measured(samples)) > trained.merit(edit, locality)


@pytest.mark.parametrize("change", [{"steps": 39}, {"seed": 1}])
@each
def test_other_settings_or_records_are_not_taken_from_the_cache(
    name: str, demo: EditingContext, change: dict[str, Any]
) -> None:
    own = opened(name, demo, **SHORT[name])._key()
    assert opened(name, demo, **SHORT[name] | change)._key() != own
    assert opened(name, demo_context(training=demo.training[1:]), **SHORT[name])._key() != own


@each
def test_a_record_without_neighbours_leaves_another_ones_answer_alone(name: str) -> None:
    training = tuple(Record(edit=edit) for edit in tiny_edits(3))
    editor = opened(name, tiny_context(training=training))
    examples = editor.examples()
    for example in examples:
        for seed in range(4):
            queries, wording, unrelated = editor._sample(examples, [example], random.Random(seed))
            assert wording == queries.row
            assert unrelated in [(other.query.row[0], other.query.old) for other in examples if other is not example]


@each
def test_three_records_without_neighbours_are_enough_and_fewer_are_not(name: str) -> None:
    training = tuple(Record(edit=edit) for edit in tiny_edits(3))
    opened(name, tiny_context(training=training), steps=2, batch=2, held_out=0.5).prepare()
    for count in (0, 2):
        with pytest.raises(ConfigError, match=rf"can read {count} of {count} training records: give at least 3"):
            opened(name, tiny_context(training=training[:count])).edit(tiny_edits(1))


@each
def test_records_that_the_base_cannot_read_are_left_out(name: str) -> None:
    strange = tuple(Record(edit=Edit(prompt="w5", target=f"strange{i}")) for i in range(3))
    readable = opened(name, tiny_context(training=(*strange, *tiny_records(3))))
    assert len(readable.examples()) == 3
    with pytest.raises(ConfigError, match="can read 0 of 3 training records"):
        opened(name, tiny_context(training=strange)).prepare()
