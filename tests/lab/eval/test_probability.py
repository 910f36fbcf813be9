"""CounterFact's figures are what a plain loop over single prompts gives; the unedited control shows nothing."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
import torch
from tiny import text, wrap_tiny

import wise
from wise.errors import ConfigError, EditError
from wise.lab.eval.quality import measure_quality
from wise.probes import Probe, Query

architectures = pytest.mark.parametrize("model_type", ["gpt2", "llama", "bloom", "opt"])
MEASURES = ("efficacy", "paraphrase", "neighbourhood")


def record(start: int, **tests: Any) -> wise.Record:
    """A record whose prompts and answers have unlike lengths."""
    prompt = text(range(start, start + 3))
    fields: dict[str, Any] = {
        "paraphrases": (f"w90 w91 w92 w93 {prompt}", f"w94 {prompt}"),
        "neighbours": (text([start]), "w80 w81 w82"),
        "answer": text(range(start + 30, start + 30 + start % 4 + 1)),
    } | tests
    if fields["answer"] is not None:
        fields = {"probes": tuple(gold(prompt, fields["answer"]) for prompt in fields["neighbours"])} | fields
    return wise.Record(edit=wise.Edit(id=f"r{start}", prompt=prompt, target="w40 w41 w42"), **fields)


def gold(prompt: str, answer: str) -> Probe:
    """Says what the answer to a neighbour is."""
    return Probe(kind="locality.gold", queries=(Query(prompt=prompt, answers=("w59", answer)),))


RECORDS = [record(start, neighbours=(text([start]),) if start == 21 else ("w80 w81 w82",)) for start in range(20, 27)]


@torch.no_grad()
def probability(model: Any, prompt: list[int], answer: list[int]) -> float:
    """The geometric mean of the tokens' probabilities, one token at a time."""
    product = 1.0
    for place, token in enumerate(answer):
        logits = model(torch.tensor([[*prompt, *answer[:place]]]), use_cache=False).logits[0, -1]
        product *= float(logits.double().softmax(-1)[token])
    return product ** (1 / len(answer))


def by_hand(model: Any, encoder: Any, records: list[wise.Record]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for measure in MEASURES:
        scores, magnitudes, n = [], [], 0
        for each in records:
            prompts = {
                "efficacy": (each.edit.prompt,),
                "paraphrase": each.paraphrases,
                "neighbourhood": each.neighbours,
            }[measure]
            found = []
            for prompt in prompts:
                ids = encoder.prompt(prompt)
                new, true = (
                    probability(model, ids, [int(word[1:]) for word in answer.split()])
                    for answer in (each.edit.target, str(each.answer))
                )
                found.append(true - new if measure == "neighbourhood" else new - true)
            n += len(found)
            scores.append(fmean(gain > 0 for gain in found))
            magnitudes.append(fmean(found))
        figures[measure] = {"score": fmean(scores), "magnitude": fmean(magnitudes), "n": n}
    return figures


@architectures
def test_figures_are_those_of_a_plain_loop(model_type: str) -> None:
    wrapped = wrap_tiny(model_type)
    found = measure_quality(wrapped, RECORDS).counterfact
    assert found is not None
    with wrapped.disabled() as base:
        before = by_hand(base, wrapped.encoder, RECORDS)
    after = by_hand(wrapped, wrapped.encoder, RECORDS)
    for measure in MEASURES:
        assert found[measure] == pytest.approx(after[measure], rel=1e-4, abs=1e-7)
        assert found["base"][measure] == pytest.approx(before[measure], rel=1e-4, abs=1e-7)
    assert any(before[m]["magnitude"] != pytest.approx(after[m]["magnitude"], rel=0.05) for m in MEASURES)


def test_the_unedited_model_is_its_base() -> None:
    found = measure_quality(wrap_tiny("llama", mode=None), RECORDS).counterfact
    assert found is not None
    assert {name: found[name] for name in MEASURES} == found["base"]


def test_only_records_that_know_the_answer_before_are_compared() -> None:
    wrapped = wrap_tiny("llama")
    unknown = record(20, answer=None)
    assert measure_quality(wrapped, [unknown]).counterfact is None
    assert measure_quality(wrapped, [unknown]).locality["neighbourhood_score"] is None
    quality = measure_quality(wrapped, [unknown, record(30), record(50, answer="w40 w41 w42")])
    assert quality.counterfact is not None
    assert quality.counterfact["efficacy"]["n"] == 1
    assert quality.locality["neighbourhood_score"] == quality.counterfact["neighbourhood"]["score"]


def test_only_neighbours_are_compared_whose_answer_is_known_to_be_that_one() -> None:
    for probes, n in (((gold("w80", "w60"),), 1), ((gold("w80", "w61"),), 0), ((gold("w81", "w60"),), 0), ((), 0)):
        asked = record(20, neighbours=("w80",), answer="w60", probes=probes)
        found = measure_quality(wrap_tiny("llama"), [asked]).counterfact
        assert found is not None
        assert found["neighbourhood"]["n"] == n
        assert (found["neighbourhood"]["score"] is None) == (n == 0)


def test_what_the_answer_before_needs_must_fit_the_context() -> None:
    too_long = record(20, answer=text([9] * 130), paraphrases=(), neighbours=())
    with pytest.raises(EditError, match=r"r20: .*efficacy.* takes \d+ tokens"):
        measure_quality(wrap_tiny("llama"), [too_long])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_no_probability_follows_from_is_said_and_not_counted_as_wrong(value: float) -> None:
    wrapped = wrap_tiny("llama", mode=None)
    assert wrapped.encoder
    with torch.no_grad():
        wrapped.model.get_output_embeddings().weight[7] = value
    with pytest.raises(ConfigError, match="NaN or infinity"):
        measure_quality(wrapped, RECORDS)


@pytest.mark.parametrize("answer", ["<eos>", "jaźń"])
def test_an_old_answer_that_the_model_has_no_token_for_is_refused(answer: str) -> None:
    with pytest.raises(EditError, match="r20: .* is not in this model's vocabulary"):
        measure_quality(wrap_tiny("llama"), [record(20, answer=answer)])


def test_a_target_that_the_model_has_no_token_for_is_refused_for_the_control_too() -> None:
    with pytest.raises(EditError, match="r20: field 'target': .* is not in the vocabulary"):
        edit = wise.Edit(id="r20", prompt="w20", target="jaźń")
        measure_quality(wrap_tiny("llama", mode=None), [wise.Record(edit=edit)])


def test_an_answer_that_cannot_be_said_is_less_likely_and_no_error() -> None:
    wrapped = wrap_tiny("llama", mode=None)
    assert wrapped.encoder
    original = wrapped.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        out.logits[..., 40] = float("-inf")
        return out

    wrapped.model.forward = forward  # type: ignore[method-assign]
    found = measure_quality(wrapped, RECORDS).counterfact
    assert found is not None
    assert found["efficacy"]["score"] == 0 and found["neighbourhood"]["score"] == 1
    assert found["efficacy"]["magnitude"] < 0
