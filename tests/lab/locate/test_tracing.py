"""Causal tracing on tiny models of every architecture, against a reference that does one thing at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import pytest
import torch
from tiny import ARCHITECTURES, DEPTH, VOCABULARY, same_tensors, text, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

import wise
from wise.errors import ConfigError, UnsupportedModelError
from wise.lab.locate import tracing
from wise.lab.locate.facts import Fact
from wise.lab.locate.running import Noise, Patch, Runner
from wise.lab.locate.sites import KINDS, find_sites
from wise.lab.locate.tracing import (
    Known,
    default_window,
    draw_noise,
    find_known,
    noise_width,
    trace_fact,
    window_layers,
)
from wise.memory.modules import evaluating
from wise.training.encoding import Encoder, learn_encoder

IDS = (5, 6, 7, 8, 9, 10, 11, 12)
SPAN = (2, 4)
every_architecture = pytest.mark.parametrize("model_type", ARCHITECTURES)


def runner_of(model: PreTrainedModel) -> Runner:
    return Runner(model, find_sites(model))


def fact_of(model: PreTrainedModel) -> Known:
    """Random text that is traced as if it were a fact: its answer is what the model would say."""
    answer = int(model(torch.tensor([IDS])).logits[0, -1].argmax())
    return Known(prompt=text(IDS), ids=IDS, span=SPAN, answer=answer)


def noise_of(runner: Runner, fact: Known, samples: int = 2) -> Noise:
    return draw_noise(runner, fact, width=noise_width(runner, [fact]), samples=samples, seed=3)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


# -- one thing at a time ----------------------------------------------------------------------


class Reference:
    """Plain hooks, whole forwards, one token, one layer, one draw."""

    def __init__(self, model: PreTrainedModel, fact: Known, noise: Noise) -> None:
        self.model, self.fact, self.sites = model, fact, find_sites(model)
        self.clean = self.run(None, {})
        self.noisy = [self.run(values, {}) for values in noise.values]
        self.noise = noise

    def run(self, noise: Tensor | None, changes: dict[nn.Module, dict[int, Tensor]]) -> tuple[float, dict[Any, Tensor]]:
        """Probability of the answer, and what each place gave, `[tokens, d]`."""
        seen: dict[Any, Tensor] = {}
        begin, end = self.fact.span

        def put(module: nn.Module, _args: Any, output: Any) -> Any:
            state = (output[0] if isinstance(output, tuple) else output).clone()
            flat = state.view(len(self.fact.ids), -1)
            for token, value in changes.get(module, {}).items():
                flat[token] = value
            if noise is not None and module is self.sites.embedding:
                flat[begin:end] += noise
            seen[module] = flat.clone()
            return (state, *output[1:]) if isinstance(output, tuple) else state

        places = [self.sites.embedding, *self.sites.blocks, *self.sites.ffn, *self.sites.attention]
        handles = [place.register_forward_hook(put) for place in places]
        logits = self.model(torch.tensor([self.fact.ids])).logits[0, -1]
        for handle in handles:
            handle.remove()
        return float(logits.softmax(-1)[self.fact.answer]), seen

    def effect(self, kind: str, layers: range, token: int) -> float:
        _, clean = self.clean
        total = 0.0
        for values, (low, _) in zip(self.noise.values, self.noisy, strict=True):
            changes = {(m := self.sites.module(kind, i)): {token: clean[m][token]} for i in layers}
            total += self.run(values, changes)[0] - low
        return total / len(self.noisy)


@pytest.mark.parametrize(("model_type", "window"), [*((name, 2) for name in ARCHITECTURES), ("llama", 1)])
def test_a_trace_is_what_one_thing_at_a_time_gives(model_type: str, window: int) -> None:
    model = tiny_model(model_type)
    runner, fact = runner_of(model), fact_of(model)
    noise = noise_of(runner, fact)
    reference = Reference(model, fact, noise)
    trace = trace_fact(runner, fact, noise, window=window)
    assert trace.high == pytest.approx(reference.clean[0], abs=1e-5)
    assert trace.low == pytest.approx(sum(low for low, _ in reference.noisy) / 2, abs=1e-5)
    assert any(abs(x) > 1e-3 for rows in trace.effects.values() for row in rows for x in row)
    for kind in KINDS:
        for place, token in enumerate(range(SPAN[0], len(IDS))):
            for layer in range(DEPTH):
                layers = range(layer, layer + 1) if kind == "state" else window_layers(layer, window, DEPTH)
                wanted = reference.effect(kind, layers, token)
                assert trace.effects[kind][place][layer] == pytest.approx(wanted, abs=1e-5), (kind, token, layer)


# -- what must come out -----------------------------------------------------------------------


@every_architecture
def test_all_restored_is_the_clean_run_and_nothing_restored_the_noisy_one(model_type: str) -> None:
    model = tiny_model(model_type)
    runner, fact = runner_of(model), fact_of(model)
    noise = noise_of(runner, fact, samples=1)
    clean, noisy = runner.record(IDS), runner.record(IDS, noise)
    assert not torch.allclose(clean.logits, noisy.logits, atol=1e-2)
    assert torch.equal(runner.patched(IDS, noise), noisy.logits)
    tokens = torch.arange(len(IDS))
    rows = torch.zeros_like(tokens)
    everything = [
        Patch(kind=kind, layer=i, rows=rows, tokens=tokens, values=clean.outputs[kind][i][0])
        for kind in KINDS
        for i in range(DEPTH)
    ]
    assert torch.equal(runner.patched(IDS, noise, everything), clean.logits)


@every_architecture
def test_noise_reaches_the_subject_and_what_stands_behind_it(model_type: str) -> None:
    model = tiny_model(model_type)
    runner, fact = runner_of(model), fact_of(model)
    clean, noise = runner.record(IDS), noise_of(runner, fact, samples=1)
    noisy = runner.record(IDS, noise)
    for layer in range(DEPTH):
        before, after = (run.outputs["state"][layer][0] for run in (clean, noisy))
        assert torch.equal(before[: SPAN[0]], after[: SPAN[0]])
        assert not torch.isclose(before[SPAN[0] :], after[SPAN[0] :]).all(-1).any()


def test_noise_is_three_times_as_wide_as_the_subjects_embeddings() -> None:
    model = tiny_model("llama")
    runner, fact = runner_of(model), fact_of(model)
    other = Known(prompt="other", ids=(40, 41, 42, 43), span=(0, 3), answer=4)
    table = model.get_input_embeddings().weight
    wanted = 3 * float(table[torch.tensor([7, 8, 40, 41, 42])].std())
    width = noise_width(runner, [fact, other])
    assert width == pytest.approx(wanted, rel=1e-6)
    noise = draw_noise(runner, fact, width=width, samples=500, seed=0)
    assert noise.start == 2
    assert noise.values.shape == (500, 2, 32)
    assert float(noise.values.std()) == pytest.approx(width, rel=0.02)
    again = draw_noise(runner, fact, width=width, samples=500, seed=0)
    assert torch.equal(noise.values, again.values)
    for changed in (draw_noise(runner, fact, width=width, samples=500, seed=1), noise_of(runner, other, 500)):
        assert not torch.equal(noise.values[:, :2], changed.values[:, :2])


def test_without_noise_there_is_no_effect() -> None:
    model = tiny_model("llama")
    runner, fact = runner_of(model), fact_of(model)
    silent = Noise(start=SPAN[0], values=torch.zeros(2, 2, 32))
    trace = trace_fact(runner, fact, silent, window=2)
    assert trace.low == pytest.approx(trace.high, abs=1e-6)
    numbers = [x for rows in trace.effects.values() for row in rows for x in row]
    assert numbers == pytest.approx([0.0] * len(numbers), abs=1e-6)


def test_how_many_rows_share_a_forward_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    runner, fact = runner_of(model), fact_of(model)
    whole = trace_fact(runner, fact, noise_of(runner, fact, 3), window=1)
    monkeypatch.setattr(tracing, "TOKENS", 2 * len(IDS))
    parts = trace_fact(runner, fact, noise_of(runner, fact, 3), window=1)
    for kind in KINDS:
        for a, b in zip(whole.effects[kind], parts.effects[kind], strict=True):
            assert a == pytest.approx(b, abs=1e-6)


def test_windows() -> None:
    assert [default_window(depth) for depth in (1, 6, 12, 32, 48)] == [1, 1, 2, 7, 10]
    assert [window_layers(i, 1, 3) for i in range(3)] == [range(i, i + 1) for i in range(3)]
    assert window_layers(20, 10, 48) == range(15, 25)
    assert [window_layers(i, 3, 4) for i in range(4)] == [range(0, 2), range(0, 3), range(1, 4), range(2, 4)]


# -- the model stays what it was --------------------------------------------------------------


def untouched(model: PreTrainedModel) -> bool:
    modules = list(model.modules())
    return not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in modules)


@every_architecture
def test_the_model_is_the_same_afterwards(model_type: str) -> None:
    model = tiny_model(model_type)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with evaluating(model):
        runner, fact = runner_of(model), fact_of(model)
        assert not model.training
        trace_fact(runner, fact, noise_of(runner, fact), window=1)
    assert untouched(model)
    assert all(module.training for module in model.modules())
    assert same_tensors(model, before)


@pytest.mark.parametrize("model_type", ["llama", "gptj"])
def test_hooks_are_gone_after_an_error_too(model_type: str) -> None:
    model = tiny_model(model_type)
    runner, fact = runner_of(model), fact_of(model)
    noise = noise_of(runner, fact)

    def broken(*_: Any) -> None:
        raise RuntimeError("on purpose")

    handle = runner.sites.ffn[2].register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="on purpose"):
        runner.record(IDS, noise)
    with pytest.raises(RuntimeError, match="on purpose"):
        runner.patched(IDS, noise)
    handle.remove()
    assert untouched(model)


# -- which facts are traced -------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    with torch.no_grad():
        return learn_encoder(tiny_model("llama"), tiny_tokenizer(), wise.WiseConfig(terminator="", bos=False))


def said(ids: tuple[int, ...], tokens: int) -> str:
    """What the tiny model goes on with."""
    row = list(ids)
    for _ in range(tokens):
        row.append(int(tiny_model("llama")(torch.tensor([row])).logits[0, -1].argmax()))
    return text(row[len(ids) :])


def test_a_fact_is_known_where_the_base_says_all_of_its_answer(encoder: Encoder) -> None:
    runner = runner_of(tiny_model("llama"))
    answer = said(IDS, 2)
    first, second = (int(word[1:]) for word in answer.split())
    wrong = text([first, (second + 1) % VOCABULARY or 4])

    def fact(answer: str, subject: str = text([7, 8]), prompt: str = text(IDS)) -> Fact:
        return Fact(prompt=prompt, subject=subject, answer=answer)

    found = find_known(
        runner,
        encoder,
        [
            fact(answer),
            fact(wrong),
            fact(text([(first + 1) % VOCABULARY or 4])),
            fact(answer, subject=text([11, 12])),
            fact(answer, subject="w7", prompt=text([7, 8, 7, 9])),
            fact(answer, subject="w7", prompt=text([7, *[8] * 200])),
            fact("<eos>"),
        ],
    )
    assert found[0] == Known(prompt=text(IDS), ids=IDS, span=(2, 4), answer=first)
    reasons = ["UNKNOWN", "UNKNOWN", "ENDS", "NO_SUBJECT", "TOO_LONG", "NO_ANSWER"]
    assert found[1:] == [getattr(tracing, reason) for reason in reasons]
    assert {why for why in found[1:] if isinstance(why, str)} == set(tracing.SKIPPED)


@every_architecture
def test_a_fact_is_looked_up_in_one_forward_that_says_what_one_a_token_does(model_type: str) -> None:
    model = tiny_model(model_type)
    encoder = learn_encoder(model, tiny_tokenizer(), wise.WiseConfig(terminator="", bos=False))
    runner = runner_of(model)

    def spoken(prompt: list[int]) -> list[int]:
        row = [*prompt]
        for _ in range(4):
            row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
        return list(takewhile(lambda token: token >= 4, row[len(prompt) :]))  # special tokens are no answer

    prompt = next(p for p in ([i, i + 1, i + 2, i + 3] for i in range(4, 60)) if len(spoken(p)) >= 3)
    answer = spoken(prompt)
    calls: list[int] = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    for place in range(len(answer) + 1):
        said = [*answer]
        if place < len(answer):
            said[place] = 4 + (said[place] - 3) % (VOCABULARY - 4)
        calls.clear()
        [found] = find_known(runner, encoder, [Fact(prompt=text(prompt), subject=text(prompt[1:3]), answer=text(said))])
        assert len(calls) == 1
        assert isinstance(found, Known) == (said == answer), place
    handle.remove()


def test_probabilities_that_are_no_numbers_are_said_at_once(encoder: Encoder) -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(UnsupportedModelError, match="no finite numbers"):
        find_known(runner_of(model), encoder, [Fact(prompt=text(IDS), subject="w7", answer="w9")])


def test_embeddings_without_spread_give_no_noise() -> None:
    model = tiny_model("llama")
    model.get_input_embeddings().weight.fill_(1.0)
    with pytest.raises(ConfigError, match="no noise can be drawn"):
        noise_width(runner_of(model), [fact_of(model)])


def test_a_place_that_is_missing_or_passed_by_is_said() -> None:
    model = tiny_model("llama")
    runner = runner_of(model)
    model.model.layers[1].mlp = nn.Identity()
    with pytest.raises(UnsupportedModelError, match="ffn of layer 1 was computed 0 times"):
        runner.record(IDS)
    with pytest.raises(UnsupportedModelError, match="no module 'model.layers.1.mlp.down_proj'"):
        find_sites(model)
