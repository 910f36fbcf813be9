"""Routers side by side: each scores as its name says, and thresholds are found alike and on other records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from grounds import demo_ground, records
from tiny import BATCH, WordReader, text, wrap_tiny
from torch import Tensor
from torch.nn.functional import normalize
from typer.testing import CliRunner

import wise
from wise.architectures import locate
from wise.cli.app import app
from wise.demo import model_path
from wise.errors import ConfigError, EditError
from wise.lab.eval.routers.contenders import findable
from wise.lab.eval.routers.contest import HARD, POSITIVES, Ground, Rounds, compare_routers, make_rounds
from wise.lab.eval.routers.reading import Reading, read
from wise.lab.eval.routers.scorers import Cosine, Embedded, EpsilonBall, LargestActivation, Named, Served
from wise.lab.eval.routers.table import gates, markdown, separation
from wise.lab.eval.routing.scores import score_prompts
from wise.lab.eval.work import Work
from wise.memory.key_space import KeySpace
from wise.memory.layer import SideMemoryLayer
from wise.memory.slot import AnswerSlot

TEXTS = [text([5, 6, 7, 8, 9]), text([20, 21]), text([40, 41, 42, 43, 44, 45, 46])]
RATES = (0.05, 0.5)


def bag_of_letters(texts: Any) -> Tensor:
    """An embedder that needs no package."""
    counts = torch.tensor([[float(t.lower().count(chr(97 + i))) for i in range(26)] for t in texts])
    return normalize(counts + 1e-3, dim=-1)


def made_up(count: int, tokens: int, seed: int = 0) -> list[Reading]:
    g = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        activations = torch.randn(tokens, 6, generator=g)
        found.append(Reading(text=f"t{i}", ids=tuple(range(8)), activations={1: activations}))
    return found


def single(count: int) -> tuple[frozenset[str], ...]:
    return tuple(frozenset([f"e{i}"]) for i in range(count))


# -- what each goes by ------------------------------------------------------------------------


def test_an_epsilon_ball_is_the_euclidean_distance_and_a_cosine_is_not() -> None:
    keys = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    readings = made_up(3, 2)
    rows = [row for reading in readings for row in reading.activations[1]]
    ball = EpsilonBall(candidates=single(4), block=1, keys=keys).scores(readings)
    for row, value, best in zip(rows, *ball, strict=True):
        distances = [float((row - key).square().sum().sqrt()) for key in keys]
        assert int(best) == distances.index(min(distances))
        assert float(value) == pytest.approx(-min(distances), rel=1e-4)
    cosine = Cosine(candidates=single(4), block=1, keys=keys).scores(readings)
    for row, value, best in zip(rows, *cosine, strict=True):
        cosines = [float(row @ key / row.norm() / key.norm()) for key in keys]
        assert (int(best), float(value)) == (cosines.index(max(cosines)), pytest.approx(max(cosines), abs=1e-5))
    longer = [replace(r, activations={1: 100 * r.activations[1]}) for r in readings]
    assert torch.equal(Cosine(candidates=single(4), block=1, keys=keys).scores(longer).value, cosine.value)
    assert bool((EpsilonBall(candidates=single(4), block=1, keys=keys).scores(longer).value < ball.value).all())


def test_a_whitened_cosine_is_that_of_keys_in_the_space() -> None:
    g = torch.Generator().manual_seed(2)
    space = KeySpace(mean=torch.randn(6, generator=g), projection=torch.randn(4, 6, generator=g))
    keys, readings = torch.randn(3, 6, generator=g), made_up(4, 1)
    found = Cosine(candidates=single(3), block=1, keys=keys, space=space).scores(readings)
    wanted = torch.cat([space.keys(r.activations[1]) for r in readings]) @ space.keys(keys).T
    torch.testing.assert_close(found.value, wanted.max(-1).values, rtol=0, atol=1e-5)
    plain = Cosine(candidates=single(3), block=1, keys=keys).scores(readings)
    assert not torch.allclose(plain.value, found.value, atol=1e-2)


def test_the_largest_activation_is_the_length_of_what_a_slot_adds() -> None:
    weights = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(3))
    readings = made_up(2, 3)
    found = LargestActivation(candidates=single(3), block=1, weights=weights).scores(readings)
    for row, value, best in zip((r for one in readings for r in one.activations[1]), *found, strict=True):
        lengths = [float((slot @ row).norm()) for slot in weights]
        assert (int(best), float(value)) == (lengths.index(max(lengths)), pytest.approx(max(lengths), rel=1e-5))


def test_an_embedding_is_asked_once_of_a_text_and_holds_for_all_its_tokens() -> None:
    asked: list[list[str]] = []

    def embedder(texts: Any) -> Tensor:
        asked.append(list(texts))
        return bag_of_letters(texts)

    readings = [replace(r, text=t) for r, t in zip(made_up(2, 3), ["abba", "yes"], strict=True)]
    scorer = Embedded(candidates=single(2), embedder=embedder, keys=bag_of_letters(["say", "baba"]))
    value, best = scorer.scores(readings)
    assert asked == [["abba", "yes"]] and best.tolist() == [1, 1, 1, 0, 0, 0]
    assert float(value[0]) == pytest.approx(1.0) and len(set(value.tolist())) == 2


@pytest.mark.parametrize("every_token", [True, False])
def test_the_hybrid_router_scores_as_it_serves(every_token: bool) -> None:
    wrapped = wrap_tiny("llama", "hybrid", layer=1)
    memory, inputs = wrapped.layer.memory, wrapped.inputs
    assert memory is not None and inputs is not None
    texts = [*TEXTS, *map(text, BATCH), text([90, 91, 92])]
    readings = read(wrapped, [wrapped.projection], texts, every_token=every_token)
    scored = score_prompts(wrapped, texts, name="served", every_token=every_token, work=Work())
    scorer = Named(candidates=(*single(3), frozenset()), memory=memory, sequences=inputs.sequences)
    value, best = scorer.scores(readings)
    assert value.tolist() == [each for one in scored for each in one.values]
    names = [edit for one in scored for edit in one.edits]
    assert [next(iter(scorer.candidates[place]), None) for place in best.tolist()] == names
    assert {bool(each >= 1) for each in value} == {True, False} and None in names


def test_edits_are_found_without_their_values_as_they_are_with_them() -> None:
    ground, edits = demo_ground(), [record.edit for record in records(4)]
    wrapped = wise.wrap(ground.model, ground.encoder.tokenizer, wise.WiseConfig(), reader=WordReader())
    try:
        assert wrapped.inputs is not None
        bare = findable(wrapped, edits, wrapped.inputs)
        report = wrapped.edit(edits)
        assert not report.failed
        for edit, slot, own in zip(edits, wrapped.state.slots, bare.slots, strict=True):
            assert isinstance(slot, AnswerSlot) and isinstance(own, AnswerSlot)
            assert torch.equal(bare.keys[edit.id], wrapped.state.keys[edit.id])
            assert (own.threshold, own.answers, own.edit_ids) == (slot.threshold, slot.answers, slot.edit_ids)
            assert not own.values.any() and own.values.shape == slot.values.shape
        assert bare.key_space == wrapped.state.key_space
    finally:
        wrapped.unwrap()


def test_what_serves_in_retrieve_scores_as_it_serves() -> None:
    wrapped = wrap_tiny("llama", "retrieve")
    memory, owners, layer = wrapped.layer.memory, wrapped.state.key_owners, wrapped.projection.layer
    assert memory is not None
    scored = score_prompts(wrapped, TEXTS, name="served", every_token=True, work=Work())
    model = wrapped.unwrap()
    reading = read(wrap_tiny(model, "hybrid", layer=layer), [wrapped.projection], TEXTS, every_token=True)
    candidates = tuple(frozenset([owner]) for owner in owners)
    found = Served(candidates=candidates, block=layer, memory=memory).scores(reading)
    wanted = torch.tensor([value for one in scored for value in one.values])
    torch.testing.assert_close(found.value, wanted, rtol=1e-3, atol=1e-4)
    names = [edit for one in scored for edit in one.edits]
    assert [min(candidates[best]) for best in found.best.tolist()] == names


# -- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt"])
def test_a_reading_is_of_its_text_alone(model_type: str) -> None:
    wrapped = wrap_tiny(model_type, "hybrid", layer=1)
    places = [wrapped.projection, locate(wrapped.model, wise.WiseConfig(layer=2))]
    whole, last = (read(wrapped, places, TEXTS, every_token=every) for every in (True, False))
    for one, other, each in zip(whole, last, TEXTS, strict=True):
        [alone] = read(wrapped, places, [each], every_token=True)
        assert list(one.ids) == list(other.ids) == wrapped.encoder.prompt(each)
        assert (one.routed, other.routed) == (len(one.ids), 1)
        for block in (1, 2):
            torch.testing.assert_close(alone.activations[block], one.activations[block], rtol=1e-4, atol=1e-5)
            assert torch.equal(other.activations[block][0], one.activations[block][-1])
    assert not torch.equal(whole[0].activations[1], whole[0].activations[2])


# -- the comparison ---------------------------------------------------------------------------


def test_no_record_is_for_two_things() -> None:
    given = records(12)
    found = make_rounds(given, edits=3, skip=1, calibrate_from=6)
    assert found.measured == tuple(given[1:4]) and found.calibrating == tuple(given[6:9])
    prompts = [{r.edit.prompt for r in part} for part in (found.measured, found.calibrating, found.pool)]
    assert len(prompts[2]) == 6 and not (prompts[0] & prompts[1] | prompts[1] & prompts[2] | prompts[0] & prompts[2])
    assert make_rounds(given, edits=3, skip=1, calibrate_from=None).calibrating == tuple(given[4:7])
    for overlapping in (0, 2, 3):
        with pytest.raises(EditError, match="overlap"):
            make_rounds(given, edits=3, skip=1, calibrate_from=overlapping)
    with pytest.raises(EditError, match="from 10 on were asked for, and there are 12"):
        make_rounds(given, edits=3, skip=1, calibrate_from=10)


@pytest.fixture(scope="module")
def compared() -> dict[str, Any]:
    """Thresholds for a memory measured on that memory itself."""
    ground, given = demo_ground(), records(40)
    same = Rounds(measured=tuple(given[:8]), calibrating=tuple(given[:8]), pool=tuple(given[8:]))
    found = compare_routers(
        ground.model,
        ground.encoder.tokenizer,
        same,
        Ground(rates=RATES, max_tokens=300),
        embedder=bag_of_letters,
        reader=WordReader(),
    )
    assert not any(isinstance(module, SideMemoryLayer) for module in ground.model.modules())
    return found


def test_on_what_it_was_found_on_a_threshold_opens_for_no_more_than_promised(compared: dict[str, Any]) -> None:
    opened = {row["router"]: [gate["hard_opened"] for gate in row["gates"]] for row in compared["routers"]}
    assert all(low <= 0.05 and high <= 0.5 for low, high in opened.values())
    assert sum(high > 0.4 for _, high in opened.values()) > len(opened) / 2, "and for hardly fewer"
    for row in compared["routers"]:
        low, high = row["gates"]
        assert all(low["reached"][name] <= high["reached"][name] for name in low["reached"])


def test_every_router_is_there_and_finds_the_edits_by_their_own_prompts(compared: dict[str, Any]) -> None:
    names = [row["router"] for row in compared["routers"]]
    assert {"activation (WISE)", "wise-retrieve", "text embedding", "hybrid"} < set(names)
    assert sum(name.startswith("epsilon-ball") for name in names) == 2
    for row in compared["routers"]:
        assert row["tells_apart"] == ("slots" if row["router"] == "activation (WISE)" else "edits")
        assert row["top1"]["edits"] == 1.0 or row["router"] in ("activation (WISE)", "text embedding")
        assert set(HARD) <= set(row["auroc"]) and all(0 <= value <= 1 for value in row["auroc"].values())
        assert row["microseconds_per_token"] > 0 and set(row["top1"]) <= set(POSITIVES)
        assert all(0 <= gate["false_routes_per_million"] <= 1e6 for gate in row["gates"])
    by_name = {row["router"]: row["auroc"] for row in compared["routers"]}
    best = max(row["same_relation"] for name, row in by_name.items() if name != "hybrid")
    assert by_name["hybrid"]["same_relation"] > best, "a question that names another subject is told by that alone"


def test_the_tables_are_of_the_figures(compared: dict[str, Any]) -> None:
    for head, rows in (separation(compared), gates(compared)):
        assert len(rows) == len(compared["routers"]) and all(len(row) == len(head) for row in rows)
    head, rows = gates(compared)
    low, high = compared["routers"][3]["gates"]
    wanted = f"{low['reached']['paraphrases']:.3f} / {high['reached']['paraphrases']:.3f}"
    assert rows[3][head.index("paraphrases reached")] == wanted
    assert f"| {compared['routers'][3]['router']} |" in markdown(compared)
    assert len({line.count("|") for line in markdown(compared).splitlines() if line.startswith("|")}) == 2


def test_what_cannot_be_calibrated_is_refused() -> None:
    ground, given = demo_ground(), [replace(r, neighbours=(), relation=None) for r in records(4)]
    bare = [replace(r, edit=replace(r.edit, subject=None)) for r in given]
    rounds = Rounds(measured=tuple(bare[:2]), calibrating=tuple(bare[2:]), pool=())
    base = (ground.model, ground.encoder.tokenizer)
    with pytest.raises(ConfigError, match="no threshold can be calibrated"):
        compare_routers(*base, rounds, Ground(rates=RATES, max_tokens=50), embedder=None, reader=WordReader())
    assert not any(isinstance(module, SideMemoryLayer) for module in ground.model.modules())


def test_the_command_shows_and_writes_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wise.lab.editors.embedding.PACKAGE", "no_such_package")
    data, plain, output = tmp_path / "d.jsonl", tmp_path / "t.txt", tmp_path / "t.md"
    plain.write_text("The kettle was on the stove for an hour. Nobody had thought of it.")
    data.write_text("".join(json.dumps(record.to_dict()) + "\n" for record in records(20)))
    command = ["bench", "routers", "--model", str(model_path()), "--data", str(data), "--text", str(plain)]
    command += ["--edits", "4"]
    done = CliRunner().invoke(app, [*command, "--output", str(output), "--false-routes", "0.2", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    [one] = told["compared"]
    assert one["edits"] == 4 and [g["promised"] for g in one["routers"][0]["gates"]] == [0.2]
    assert output.read_text() == markdown(one)
    assert "left out: sentence embeddings" in done.stderr
    assert "text embedding" not in {row["router"] for row in one["routers"]}
    refused = CliRunner().invoke(app, [*command, "--calibrate-from", "2"])
    assert refused.exit_code == 2 and "overlap" in refused.stderr
