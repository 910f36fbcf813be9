"""The routing figures: each is what a plain count over routes gives, and the file that they make is the agreed one."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from routed import EDITED, edited, records
from sklearn.metrics import average_precision_score, roc_auc_score
from tiny import nearest_keys, wrap_tiny

import wise
from wise.errors import ConfigError
from wise.lab.eval.routing.classes import RoutingClass, RoutingPrompt, RoutingSet
from wise.lab.eval.routing.measure import Routing, measure_routing
from wise.lab.eval.routing.oracle import slots_of
from wise.lab.eval.routing.scores import flips, gate_ratios
from wise.lab.eval.routing.separation import BINS, histogram
from wise.router.hybrid import HybridRouter

TEXTS = (
    "The harbour was quiet in the morning, and only two boats had gone out before the wind turned to the north.",
    "A loaf of bread needs flour, water, salt and time; of these four the last is the one most often forgotten.",
    "When the bridge was closed for repairs the children walked along the river and came home late every evening.",
)
CLASS_KEYS = {
    *("about", "unit", "n", "auroc", "auroc_ci", "average_precision", "average_precision_ci", "fpr_at_95_tpr"),
    *("fpr_at_95_tpr_ci", "tpr_at_fpr_0.01", "tpr_at_fpr_0.01_ci", "tpr_at_fpr_0.001", "tpr_at_fpr_0.001_ci"),
    *("opened", "opened_ci", "against_edits", "histogram", "roc"),
}


def a_class(name: str, prompts: list[tuple[str, str | None]], unit: str = "prompt") -> RoutingClass:
    made = tuple(RoutingPrompt(text=text, record=record) for text, record in prompts)
    return RoutingClass(name=name, about=f"What {name} is.", unit=unit, prompts=made)


def a_set(known: list[wise.Record]) -> RoutingSet:
    return RoutingSet(
        positives=(
            a_class("edits", [(record.edit.prompt, record.edit.id) for record in known]),
            a_class("paraphrases", [(p, record.edit.id) for record in known for p in record.paraphrases]),
        ),
        negatives=(
            a_class("same_relation", [(p, record.edit.id) for record in known for p in record.neighbours]),
            a_class("running_text", [(text, None) for text in TEXTS], unit="token"),
            # A negative control: what is not told apart at all.
            a_class("control", [(p, record.edit.id) for record in known[:EDITED] for p in record.paraphrases]),
        ),
        skipped={"chat": "positives: the model has no chat template"},
    )


@pytest.fixture(scope="module", params=["retrieve", "merge", "hybrid"])
def measured(request: pytest.FixtureRequest) -> tuple[wise.WiseModel, list[wise.Record], Routing]:
    wrapped, known = edited(request.param), records()
    return wrapped, known, measure_routing(wrapped, a_set(known), known, seed=0)


Measured = tuple[wise.WiseModel, list[wise.Record], Routing]


def live_prompts(wrapped: wise.WiseModel, known: list[wise.Record]) -> list[tuple[str, str]]:
    live = slots_of(wrapped)
    return [(p, record.edit.id) for record in known if record.edit.id in live for p in record.paraphrases]


def test_the_file_is_the_agreed_one(measured: Measured) -> None:
    found = measured[2].to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {
        *("classes", "positives", "skipped", "bins", "scored_against", "live_edits", "not_live"),
        *("false_routes_per_million", "false_routes_per_million_ci", "running_text_tokens", "slot_top1", "edit_top1"),
        *("flips", "flips_by", "oracle"),
    }
    for figures in found["classes"].values():
        assert set(figures) == CLASS_KEYS
        assert figures["roc"][0] == [0, 0] and figures["roc"][-1] == [1, 1]
        for name in ("auroc", "average_precision", "fpr_at_95_tpr", "tpr_at_fpr_0.01", "tpr_at_fpr_0.001", "opened"):
            low, high = figures[f"{name}_ci"] or (figures[name], figures[name])
            assert 0 <= low <= figures[name] <= high <= 1
    for figures in [*found["classes"].values(), *found["positives"].values()]:
        assert sum(figures["histogram"]) == figures["n"] and len(figures["histogram"]) == len(found["bins"]) - 1
    assert found["skipped"] == {"chat": "positives: the model has no chat template"}
    assert found["scored_against"] == "paraphrases"


def test_figures_are_those_of_scikit_learn_on_the_evidence(measured: Measured) -> None:
    wrapped, known, found = measured
    positive = gate_ratios(wrapped, [prompt for prompt, _ in live_prompts(wrapped, known)])
    negative = gate_ratios(wrapped, [p for record in known for p in record.neighbours])
    truth = [1] * len(positive) + [0] * len(negative)
    values = torch.cat([positive, negative]).tolist()
    figures = found.classes["same_relation"]
    # Batches differ in their padding, so that scores differ in their last digits.
    assert figures["auroc"] == pytest.approx(roc_auc_score(truth, values), abs=0.01)
    assert figures["average_precision"] == pytest.approx(average_precision_score(truth, values), abs=0.01)
    assert figures["n"] == len(negative) and figures["opened"] == float((negative >= 1).double().mean())
    assert found.positives["paraphrases"]["opened"] == float((positive >= 1).double().mean())
    assert found.positives["edits"]["opened"] == 1
    assert found.classes["control"]["auroc"] == pytest.approx(0.5, abs=0.01)
    assert found.classes["running_text"]["auroc"] > 0.9
    assert found.classes["running_text"]["against_edits"]["auroc"] > 0.99


def test_every_token_of_running_text_counts(measured: Measured) -> None:
    wrapped, _, found = measured
    routes = [wrapped.route(torch.tensor([wrapped.encoder.prompt(text)])) for text in TEXTS]
    opened = torch.cat([route.open for route in routes if route is not None])
    assert found.running_text_tokens == found.classes["running_text"]["n"] == len(opened) > 50
    assert found.false_routes_per_million == pytest.approx(1e6 * float(opened.double().mean()))
    assert found.false_routes_per_million_ci is not None
    low, high = found.false_routes_per_million_ci
    assert low <= found.false_routes_per_million < high


def test_only_live_edits_can_be_routed_to(measured: Measured) -> None:
    wrapped, known, found = measured
    assert found.live_edits == len(wrapped.edits) and found.not_live == len(known) - len(wrapped.edits) > 0
    assert found.positives["edits"]["n"] == found.live_edits
    assert found.positives["paraphrases"]["n"] == len(live_prompts(wrapped, known))


def test_what_comes_nearest_is_what_the_router_itself_finds(measured: Measured) -> None:
    wrapped, known, found = measured
    figures = found.positives["paraphrases"]
    assert (found.slot_top1, found.edit_top1) == (figures["slot_top1"], figures["edit_top1"])
    if wrapped.wise_config.mode == "merge":
        assert figures["slot_top1"] == 1 and figures["edit_top1"] is None
        return
    asked = live_prompts(wrapped, known)
    if wrapped.wise_config.mode == "hybrid":
        memory = wrapped.layer.memory
        assert memory is not None and isinstance(memory.router, HybridRouter)
        looked_at = [memory.router.decided(wrapped.encoder.prompt(prompt)).slot for prompt, _ in asked]
        right = [slots_of(wrapped)[record] == slot for slot, (_, record) in zip(looked_at, asked, strict=True)]
        assert figures["slot_top1"] == figures["edit_top1"] == pytest.approx(sum(right) / len(right))
        assert figures["slot_top1"] == 1, "each names its subject"
        return
    hits = 0
    for prompt, record in asked:
        seen: list[torch.Tensor] = []
        handle = wrapped.layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        wrapped.route(torch.tensor([wrapped.encoder.prompt(prompt)]))
        handle.remove()
        hits += nearest_keys(wrapped.state, seen[0][0, -1:])[2] == [record]
    assert figures["edit_top1"] == pytest.approx(hits / len(asked))
    assert 0.5 < figures["edit_top1"] <= figures["slot_top1"]


def test_flips_are_changes_of_speaker_while_answering(measured: Measured) -> None:
    wrapped, known, found = measured
    live = [record for record in known if record.edit.id in slots_of(wrapped)]
    prompts = {
        "edits": [record.edit.prompt for record in live],
        "paraphrases": [p for record in live for p in record.paraphrases[:4]],
        "neighbours": [p for record in known for p in record.neighbours[:4]],
    }
    counts: dict[str, list[int]] = {}
    for kind, texts in prompts.items():
        counts[kind] = []
        for answer in wrapped.ask(texts):
            read = answer.slots[answer.prompt_tokens - 1 :]
            counts[kind].append(sum(a != b for a, b in pairwise(read)))
        assert found.flips_by[kind] == pytest.approx(sum(counts[kind]) / len(counts[kind]))
    both = counts["edits"] + counts["paraphrases"]
    assert found.flips == pytest.approx(sum(both) / len(both))
    if wrapped.wise_config.mode == "hybrid":
        assert found.flips_by["edits"] == 0, "an edit speaks until its answer is said"
    else:
        assert sum(both) > 0


def test_flips_by_hand() -> None:
    assert flips([None, 1, 1, None, None], 2) == 1
    assert flips([None, 1, 2, None, 3], 2) == 2  # the last token is not read in
    assert flips([1, None, None, None], 2) == 0  # within the prompt nothing is answered yet
    assert flips([None, 1, None], 2) == 0  # one token of answer: nothing is read after the prompt
    assert flips([None, 1], 2) == 0


def test_without_paraphrases_figures_are_against_the_edits() -> None:
    wrapped, known = edited("retrieve"), records()
    full = a_set(known)
    bare = replace(full, positives=full.positives[:1], negatives=full.negatives[:1])
    found = measure_routing(wrapped, bare, [wise.Record(edit=record.edit) for record in known])
    figures = found.classes["same_relation"]
    assert found.scored_against == "edits" and figures["against_edits"]["auroc"] == figures["auroc"]
    assert found.false_routes_per_million is None and found.running_text_tokens == 0
    assert found.oracle["generalization"] is None and found.flips_by["neighbours"] is None


def test_nothing_live_is_refused_with_a_way_out() -> None:
    known = records()
    with pytest.raises(ConfigError, match="no edit is live.*apply edits first"):
        measure_routing(wrap_tiny("llama", None), a_set(known), known)
    with pytest.raises(ConfigError, match="none of the routing set's"):
        measure_routing(edited("retrieve"), a_set(known[EDITED:]), known)


def test_histograms_hold_every_value() -> None:
    assert BINS[0] == 0 and BINS[1] == 0.05 and BINS[20] == 1 and BINS[-1] == 2
    counts = histogram(torch.tensor([-3.0, 0.0, 0.049, 0.05, 0.999, 1.0, 1.999, 2.0, 1e30], dtype=torch.float64))
    assert len(counts) == 40 and sum(counts) == 9
    assert (counts[0], counts[1], counts[19], counts[20], counts[39]) == (3, 1, 1, 1, 3)
