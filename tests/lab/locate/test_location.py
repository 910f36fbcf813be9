"""Effects averaged by role over facts, their intervals, and a real model in which they are there."""

from __future__ import annotations

import json
import random
from functools import cache
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tiny import BATCH, DEPTH, same_tensors, text, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import wise
from wise.demo import model_path
from wise.demo.facts import load_facts, train_prompts
from wise.errors import ConfigError
from wise.lab.eval.significance import bootstrap_interval
from wise.lab.locate.facts import Fact
from wise.lab.locate.location import by_role, trace
from wise.lab.locate.results import Location, spearman
from wise.lab.locate.roles import FIRST_SUBSEQUENT, FURTHER, LAST, LAST_SUBJECT, ROLES
from wise.lab.locate.tracing import ENDS, UNKNOWN, Known
from wise.training.encoding import learn_encoder

PROMPTS = [*BATCH, [50, 51, 52, 53], [60, 61, 62, 63, 64]]


@cache
def tiny_facts() -> list[Fact]:
    """Texts of unlike length whose next word the tiny model says; one that it does not, and one without an end."""
    model = tiny_model("llama")
    encoder = learn_encoder(model, tiny_tokenizer(), wise.WiseConfig(terminator=""))
    facts = []
    for ids in PROMPTS:
        with torch.no_grad():
            answer = int(model(torch.tensor([encoder.prompt(text(ids))])).logits[0, -1].argmax())
        facts.append(Fact(prompt=text(ids), subject=text(ids[:2]), answer=text([answer])))
    wrong = Fact(prompt=facts[0].prompt, subject=facts[0].subject, answer="w4 w4")
    return [*facts, wrong, Fact(prompt="w9 w8", subject="w8", answer="w4")]


def traced(**options: Any) -> Location:
    return trace(tiny_model("llama"), tiny_tokenizer(), tiny_facts(), **{"samples": 2} | options)


# -- figures ----------------------------------------------------------------------------------


def test_a_role_is_averaged_within_each_fact_and_then_over_facts() -> None:
    known = [
        Known(prompt="a", ids=(1, 2, 3, 4, 5, 6), span=(1, 2), answer=7),  # last subject, first subsequent, 2 x further
        Known(prompt="b", ids=(1, 2, 3), span=(0, 2), answer=7),  # first and last subject, last
    ]
    effects = [[[0.1, 1.0], [0.2, 2.0], [0.3, 3.0], [0.5, 5.0], [0.6, 6.0]], [[0.7, 7.0], [0.8, 8.0], [0.9, 9.0]]]
    found = by_role(known, effects, 0)
    assert found.n == [1, 0, 2, 1, 1, 2]
    assert found.mean[ROLES.index(LAST_SUBJECT)] == pytest.approx([0.45, 4.5])
    assert found.mean[ROLES.index(FURTHER)] == pytest.approx([0.4, 4.0])
    assert found.mean[ROLES.index(FIRST_SUBSEQUENT)] == pytest.approx([0.2, 2.0])
    assert found.mean[ROLES.index(LAST)] == pytest.approx([0.75, 7.5])
    assert found.mean[1] == found.ci[1] == [None, None]
    assert found.ci[ROLES.index(LAST)][0] == pytest.approx([0.6, 0.9])


def test_an_interval_is_that_of_many_drawn_means() -> None:
    order = random.Random(1)
    values = [[order.gauss(0.3, 0.1), order.gauss(-1.0, 2.0)] for _ in range(80)]
    known = [Known(prompt=str(i), ids=(1, 2), span=(0, 1), answer=7) for i in range(80)]

    def interval(facts: int, seed: int) -> Any:
        """Of the state at the subject's only token."""
        effects = [[row, [0.0, 0.0]] for row in values[:facts]]
        return by_role(known[:facts], effects, seed).ci[ROLES.index(LAST_SUBJECT)]

    table = np.array(values)
    drawn = np.random.default_rng(5).integers(0, 80, (10_000, 80))
    wanted = np.quantile(table[drawn].mean(1), [0.025, 0.975], axis=0).T
    assert np.array(interval(80, 0)) == pytest.approx(wanted, abs=0.03)
    assert interval(80, 0) == [list(bootstrap_interval(column)) for column in table.T]  # as runs are compared
    assert interval(80, 0) == interval(80, 0) != interval(80, 1)
    assert interval(1, 0) == [[x, x] for x in values[0]]


def test_rank_correlation_is_spearmans() -> None:
    order = random.Random(0)
    for _ in range(20):
        a = [order.randint(0, 5) / 7 for _ in range(8)]
        b = [x + order.random() for x in a]
        assert spearman(a, b) == pytest.approx(float(spearmanr(a, b).statistic))
    assert spearman([1, 2, 3], [5, 7, 9]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([1, 2], [1, 2]) is None
    assert spearman([1, 1, 1], [1, 2, 3]) is None


# -- a whole trace ----------------------------------------------------------------------------


def test_what_is_traced_is_counted_and_ready_for_json() -> None:
    seen: list[tuple[str, int, int]] = []
    model, before = tiny_model("llama").train(), tiny_model("llama")
    found = trace(
        model, tiny_tokenizer(), tiny_facts(), samples=2, name="tiny", progress=lambda *step: seen.append(step)
    )
    assert model.training and same_tensors(model, before)
    assert (found.facts, found.skipped) == (5, {ENDS: 1, UNKNOWN: 1})
    assert (found.layers, found.window, found.samples) == (DEPTH, 1, 2)
    result = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert result["model"] == {"name": "tiny", **result["model"]}
    assert result["model"]["type"] == "llama" and result["roles"] == list(ROLES)
    assert (result["sweep"], result["recommendation"]) == ([], None)
    for effects in result["effects"].values():
        assert [len(row) for row in effects["mean"]] == [len(row) for row in effects["ci"]] == [DEPTH] * len(ROLES)
        assert effects["n"] == [5, 0, 5, 4, 3, 5]
        for means, bounds in zip(effects["mean"], effects["ci"], strict=True):
            for mean, interval in zip(means, bounds, strict=True):
                assert (mean is None) == (interval is None)
                assert mean is None or interval[0] <= mean <= interval[1]
    assert 0 < found.low_score < found.high_score < 1
    assert found.effect("state", LAST)[-1] == pytest.approx(found.high_score - found.low_score, abs=1e-5)
    assert ("trace", 5, 5) in seen


def test_the_seed_decides_the_noise_and_nothing_else_does() -> None:
    first = traced().to_dict()
    torch.manual_seed(5)
    assert traced().to_dict() == first
    assert traced(seed=1).to_dict()["effects"] != first["effects"]


def test_facts_and_numbers_that_cannot_be_traced_are_refused() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    with pytest.raises(ConfigError, match="none of 2 facts.* 1 .* 1 not"):
        trace(model, tokenizer, tiny_facts()[-2:])
    for window in (0, DEPTH + 1):
        with pytest.raises(ConfigError, match=f"window={window}: expected a number from 1 to {DEPTH}"):
            traced(window=window)


# -- a model that knows facts -----------------------------------------------------------------


@pytest.fixture(scope="module")
def demo() -> Location:
    facts = []
    for fact in random.Random(0).sample(load_facts("train"), 12):
        prompt = train_prompts(fact)[0]
        facts.append(Fact(prompt=prompt, subject=fact.subject, answer=fact.object))
    model = AutoModelForCausalLM.from_pretrained(model_path()).eval()
    return trace(model, AutoTokenizer.from_pretrained(model_path()), facts, samples=2)


def test_the_demo_model_keeps_its_facts_at_the_subjects_last_token(demo: Location) -> None:
    assert demo.facts >= 10
    assert demo.high_score > 0.8 > 0.5 > demo.low_score
    early = demo.layers // 2
    at_subject, further = (demo.effect("state", role)[:early] for role in (LAST_SUBJECT, FURTHER))
    assert fmean(x for x in at_subject if x is not None) > 0.1
    assert min(x for x in at_subject if x is not None) > 2 * max([x for x in further if x is not None], default=0.0)


def test_in_the_demo_model_answers_leave_through_the_last_token(demo: Location) -> None:
    last = demo.effect("state", LAST)
    assert last[-1] == pytest.approx(demo.high_score - demo.low_score, abs=1e-5)
    assert (last[0] or 0.0) < fmean([last[-1] or 0.0, 0.0])
    assert demo.effect("state", LAST_SUBJECT)[-1] == pytest.approx(0.0, abs=1e-6)
