"""Quality measured in batches is what one prompt at a time gives, and the unedited control shows nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from repository import shared
from tiny import EOS, same_tensors, text, tiny_model, tiny_tokenizer, wrap_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

import wise
from wise.demo import model_path
from wise.errors import ConfigError, EditError
from wise.lab.editors.base import WholePrompts
from wise.lab.eval.candidates import EDITORS
from wise.lab.eval.prompting import Prompter, PromptOutcome, PromptRow
from wise.lab.eval.quality import Quality, measure_quality
from wise.lab.eval.run import evaluate
from wise.probes import Probe, Query
from wise.training.verification import SPARE_TOKENS

# Positions learned, rotary, by slope and by the mask: what padding could shift.
architectures = pytest.mark.parametrize("model_type", ["gpt2", "llama", "bloom", "opt"])


ANSWER_TOKENS = 6


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model seldom stops by itself."""
    monkeypatch.setattr("wise.lab.eval.quality.ANSWER_TOKENS", ANSWER_TOKENS)
    monkeypatch.setattr("wise.lab.eval.fluency.TOKENS", 12)


def record(start: int, *, target: str = "w40 w41 w42", **tests: Any) -> wise.Record:
    """A record whose prompts have unlike lengths."""
    prompt = text(range(start, start + 3))
    fields = {
        "paraphrases": (f"w90 w91 w92 w93 {prompt}", f"w94 {prompt}"),
        "free_paraphrases": (f"w95 {prompt}",),
        "neighbours": (text([start]), "w80 w81 w82"),
    }
    return wise.Record(edit=wise.Edit(id=f"r{start}", prompt=prompt, target=target), **fields | tests)


RECORDS = [record(start) for start in (20, 30, 50)]


def alone(model: Any, ids: list[int], limit: int) -> list[int]:
    """Greedy, one prompt, one token at a time, everything recomputed."""
    out: list[int] = []
    while len(out) < limit and out[-1:] != [EOS]:
        out.append(int(model(torch.tensor([[*ids, *out]]), use_cache=False).logits[0, -1].argmax()))
    return out


def forced(model: Any, ids: list[int], fed: list[int]) -> list[int]:
    """The argmax at the place of each fed token, one prompt and one place at a time."""
    rows = [[*ids, *fed[:place]] for place in range(len(fed))]
    return [int(model(torch.tensor([row]), use_cache=False).logits[0, -1].argmax()) for row in rows]


def share(a: list[int], b: list[int]) -> float:
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(b)


@architectures
@torch.no_grad()
def test_every_outcome_is_what_the_prompt_gives_alone(model_type: str) -> None:
    wrapped = wrap_tiny(model_type)
    encoder = wrapped.encoder
    found = measure_quality(wrapped, RECORDS).outcomes
    assert len(found) == 3 * (1 + 2 + 1 + 2)
    for outcome in found:
        ids = encoder.prompt(outcome.prompt)
        if outcome.measure == "locality":
            with wrapped.disabled() as base:
                said = alone(base, ids, ANSWER_TOKENS)
                wanted = forced(base, ids, said)
            answer = alone(wrapped, ids, ANSWER_TOKENS)
            right, gold = answer == said, said
        else:
            gold = wanted = [40, 41, 42]
            answer = alone(wrapped, ids, 3 + len(encoder.terminator) + SPARE_TOKENS)
            right = answer == [*gold, *encoder.terminator]
        assert outcome.answer == encoder.answer(answer)
        assert outcome.generated == right
        assert outcome.teacher_forced == pytest.approx(share(forced(wrapped, ids, gold), wanted))


@torch.no_grad()
def test_a_target_that_ends_with_a_mark_is_read_with_it() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    wrapped = wise.wrap(AutoModelForCausalLM.from_pretrained(model_path()), tokenizer)
    encoder = wrapped.encoder
    assert len(encoder.terminator) == 2, "which such a target has not"
    targets = {"The capital of France is": "Lyon.", "The capital of Spain is": "!"}
    records = [wise.Record(edit=wise.Edit(prompt=prompt, target=target)) for prompt, target in targets.items()]
    for outcome in measure_quality(wrapped, records).outcomes:
        gold = encoder.target(outcome.prompt, targets[outcome.prompt])[:-1]
        ids = encoder.prompt(outcome.prompt)
        assert outcome.teacher_forced == pytest.approx(share(forced(wrapped.model, ids, gold), gold))


@architectures
def test_the_unedited_model_is_unreliable_and_local(model_type: str) -> None:
    quality = measure_quality(wrap_tiny(model_type, mode=None), RECORDS)
    assert quality.generated == {
        "reliability": 0.0,
        "generalization": 0.0,
        "free_generalization": 0.0,
        "locality": 1.0,
    }
    assert quality.teacher_forced["locality"] == 1.0


def test_a_memory_that_speaks_everywhere_is_not_local() -> None:
    quality = measure_quality(wrap_tiny("llama"), RECORDS)
    assert quality.generated["locality"] < 1  # type: ignore[operator]
    assert quality.teacher_forced["locality"] < 1  # type: ignore[operator]


@pytest.mark.parametrize("ending, right", [([EOS], 1), ([], 0), ([43, EOS], 0)])
def test_an_answer_must_stop_by_itself(monkeypatch: pytest.MonkeyPatch, ending: list[int], right: int) -> None:
    wrapped = wrap_tiny("llama", mode=None)
    assert wrapped.encoder.stops == {EOS}
    said = [[40, 41, 42, *ending]]
    monkeypatch.setattr("wise.lab.eval.prompting.greedy", lambda _model, prompts, **_: said * len(prompts))
    quality = measure_quality(wrapped, [record(20, neighbours=())])
    assert {quality.generated[measure] for measure in ("reliability", "generalization")} == {right}
    assert quality.generated["locality"] is None


def test_only_white_space_and_final_punctuation_are_forgiven() -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path())
    wrapped = wise.wrap(model, AutoTokenizer.from_pretrained(model_path()))
    prompt = "The capital of France is"
    said = wrapped.ask(prompt)[0].text
    for target, right in ((said, 1), (f" {said}. ", 1), (said.lower(), 0), (f"{said} again", 0)):
        quality = measure_quality(wrapped, [wise.Record(edit=wise.Edit(prompt=prompt, target=target))])
        assert quality.generated["reliability"] == right, target


def test_what_fitting_may_have_seen_is_no_generalization_and_what_is_edited_no_locality() -> None:
    fitted, unseen = "w60 w61", "w62 w63"
    other = wise.Record(
        edit=wise.Edit(id="other", prompt="w70", target="w71", paraphrases=(fitted,)),
        paraphrases=("w72 w73",),
    )
    asked = record(20, paraphrases=(fitted, unseen), neighbours=("w70", "w72 w73", "w80"))
    outcomes = measure_quality(wrap_tiny("llama", mode=None), [asked, other]).outcomes
    of_asked = [outcome for outcome in outcomes if outcome.record == "r20"]
    assert [o.prompt for o in of_asked if o.measure == "generalization"] == [unseen]
    assert [o.prompt for o in of_asked if o.measure == "locality"] == ["w80"]
    # Live edits count as well as measured ones: the memory made by hand holds w4, w5 and w6.
    live = measure_quality(wrap_tiny("llama"), [record(20, neighbours=("w4", "w80"))])
    assert live.counts["locality"] == 1


def test_without_prompts_for_a_measure_there_is_no_figure() -> None:
    bare = record(20, paraphrases=(), free_paraphrases=(), neighbours=())
    quality = measure_quality(wrap_tiny("llama"), [bare])
    assert quality.generated["generalization"] is quality.teacher_forced["locality"] is None
    assert quality.generated["reliability"] is not None
    assert quality.counts == {"reliability": 1, "generalization": 0, "free_generalization": 0, "locality": 0}
    found = quality.to_dict()
    assert found["counterfact"] is found["fluency"] is found["perplexity"] is None
    assert found["probes"] == {} and set(found["locality"].values()) == {None}
    assert found["instances"] == {"edit_wise": None, "instance_wise": None, "n": 0}


def test_the_first_prompts_of_a_record_are_asked() -> None:
    many = {
        measure: tuple(text([60 + i, 61 + n]) for i in range(6))
        for n, measure in enumerate(("paraphrases", "free_paraphrases", "neighbours"))
    }
    quality = measure_quality(wrap_tiny("llama"), [record(20, **many)])
    assert quality.counts == {"reliability": 1, "generalization": 4, "free_generalization": 4, "locality": 4}
    assert [o.prompt for o in quality.outcomes if o.measure == "generalization"] == list(many["paraphrases"][:4])


def test_a_figure_is_a_mean_over_records_and_not_over_prompts() -> None:
    outcomes = [("a", 1.0)] * 3 + [("b", 0.0)]
    quality = Quality(
        outcomes=tuple(
            PromptOutcome(
                record=name,
                measure="locality",
                prompt="",
                expected="",
                answer="",
                generated=value,
                teacher_forced=0,
            )
            for name, value in outcomes
        )
    )
    assert quality.generated["locality"] == 0.5


def test_of_two_edits_of_one_prompt_the_later_is_the_wanted_one() -> None:
    first = record(20)
    later = wise.Record(edit=wise.Edit(id="later", prompt=first.edit.prompt, target="w44"))
    found = measure_quality(wrap_tiny("llama"), [first, later])
    assert {outcome.record for outcome in found.outcomes} == {"later"}


def test_a_prompt_beyond_the_context_is_named_before_anything_is_asked() -> None:
    asked: list[tuple[str, int, int]] = []
    too_long = wise.Record(
        edit=wise.Edit(prompt="w4", target="w5"), neighbours=(text([9] * 200),), source="facts.jsonl:7"
    )
    with pytest.raises(EditError, match=r"facts\.jsonl:7: .*locality.* takes 20\d tokens"):
        measure_quality(wrap_tiny("llama"), [too_long], progress=lambda *at: asked.append(at))
    assert not asked


def test_progress_ends_with_all_and_the_model_keeps_its_mode() -> None:
    wrapped = wrap_tiny("llama")
    wrapped.model.train()
    seen: list[tuple[str, int, int]] = []
    measure_quality(wrapped, FULL, texts=TEXTS, progress=lambda *at: seen.append(at))
    assert wrapped.model.training
    last = {name: (done, total) for name, done, total in seen}
    assert all(done == total > 0 for done, total in last.values())
    assert {name.split(".")[0] for name in last} == {
        "about",
        "locality",
        "conditions",
        "probes",
        "counterfact",
        "fluency",
        "perplexity",
    }


# -- every measurement together ---------------------------------------------------------------

KNOWN = Query(prompt="w70", answers=("w71",))
FULL = [
    record(
        start,
        answer="w60 w61",
        group="one",
        generation_prompts=(text([start, 62]),),
        probes=(
            Probe(kind="locality.gold", queries=(Query(prompt=text([start, 63]), answers=("w64", "w65 w66")),)),
            Probe(kind="ripple.preservation", queries=(KNOWN,), conditions=(KNOWN,)),
        ),
    )
    for start in (20, 30, 50)
]
TEXTS = [text(range(4, 90))]


def test_a_measurement_is_ready_for_json_and_repeatable() -> None:
    wrapped = wrap_tiny("llama")
    whole = measure_quality(wrapped, FULL, texts=TEXTS).to_dict()
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
    assert measure_quality(wrapped, FULL, texts=TEXTS).to_dict() == whole


def answering(monkeypatch: pytest.MonkeyPatch) -> wise.WiseModel:
    """A model that says `w40` behind a prompt whose first word is below `w30`, and else `w41`."""
    wrapped = wrap_tiny("llama", mode=None)
    begin = len(wrapped.encoder.bos)
    monkeypatch.setattr(
        "wise.lab.eval.prompting.greedy",
        lambda _model, prompts, **_: [[40 if prompt[begin] < 30 else 41, EOS] for prompt in prompts],
    )
    return wrapped


def test_edits_of_groups_are_recalled_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def grouped(start: int, group: str, target: str = "w40") -> wise.Record:
        return wise.Record(edit=wise.Edit(id=f"{start}{group}{target}", prompt=f"w{start}", target=target), group=group)

    wrapped = answering(monkeypatch)
    records = [grouped(20, "a"), grouped(21, "a"), grouped(22, "b"), grouped(31, "b"), grouped(32, "")]
    assert measure_quality(wrapped, records).instances == {"edit_wise": 0.75, "instance_wise": None, "n": 2}
    # One edit in two groups counts in both; one that a later edit contradicts is not wanted any more.
    shared = [*records, grouped(20, "b"), grouped(23, "c", "w44"), grouped(23, "d")]
    assert measure_quality(wrapped, shared).instances == {"edit_wise": 5 / 6, "instance_wise": None, "n": 3}


def test_an_instance_is_recalled_when_all_of_its_facts_are_edited_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every edit is recalled; what decides is an unedited fact, `w31`, to which the model says `w41`."""

    def case(start: int, *facts: tuple[str, str]) -> wise.Record:
        queries = tuple(Query(prompt=prompt, answers=(answer,)) for prompt, answer in facts)
        probe = Probe(kind="single_hops", queries=queries, need="all")
        edit = wise.Edit(id=f"{start}", prompt=f"w{start}", target="w40")
        return wise.Record(edit=edit, group=f"{start}", probes=(probe,))

    wrapped = answering(monkeypatch)
    right = [case(start, (f"w{start}", "w40"), ("w31", "w41")) for start in (20, 21, 22)]
    wrong = case(23, ("w23", "w40"), ("w31", "w42"))
    found = measure_quality(wrapped, [*right, wrong])
    assert found.instances == {"edit_wise": 1, "instance_wise": 0.75, "n": 4}
    assert (found.probes["single_hops"]["n"], found.probes["single_hops"]["excluded"]) == (4, 0)
    assert measure_quality(wrapped, [wrong]).instances["instance_wise"] == 0


@pytest.mark.parametrize("editor", [name for name, editor in EDITORS.items() if editor.kind != "baseline"])
def test_evaluate_hands_the_model_back_as_it_was(editor: str) -> None:
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen: list[tuple[str, int, int]] = []
    result = evaluate(
        model,
        tiny_tokenizer(),
        RECORDS,
        editor=editor,
        settings={"max_steps": 2, "prefixes": 0},
        batch=2,
        progress=lambda *at: seen.append(at),
    )
    assert same_tensors(dict(model.state_dict()), before)
    assert result.edits == 3 and result.quality.counts["reliability"] == 3
    assert (("edits", 3, 3) in seen) == EDITORS[editor].edits
    assert (result.cpu_seconds > 0) == EDITORS[editor].edits


def test_evaluate_refuses_what_it_cannot_do() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    with pytest.raises(ConfigError, match="did you mean 'wise-merge'"):
        evaluate(model, tokenizer, RECORDS, editor="wise-mrge")


@pytest.mark.slow
def test_real_edits_of_a_real_model_hold() -> None:
    folder = shared("models/factlm")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    records = wise.read_records(folder / "known_dev.jsonl", limit=8)
    wrapped = wise.wrap(model, tokenizer)
    control = measure_quality(wrapped, records).to_dict()
    wrapped.edit([record.edit for record in records])
    edited = measure_quality(wrapped, records).to_dict()
    assert edited["generated"]["reliability"] >= 0.9
    assert edited["generated"]["generalization"] > 0.2
    assert edited["generated"]["locality"] > 0.9
    assert edited["teacher_forced"]["reliability"] >= edited["generated"]["reliability"]
    assert control["generated"]["reliability"] == control["generated"]["generalization"] == 0
    assert control["generated"]["locality"] == 1
    compared = edited["counterfact"]
    assert compared["efficacy"]["score"] == 1 > 0.2 > compared["base"]["efficacy"]["score"]
    assert compared["base"] == control["counterfact"]["base"]
    assert abs(compared["neighbourhood"]["score"] - compared["base"]["neighbourhood"]["score"]) < 0.2
    assert compared["base"]["neighbourhood"]["score"] > 0.7


class Reminded(WholePrompts):
    """An editor that puts a word before every prompt, and is told where prompts end."""

    def __init__(self) -> None:
        self.model = tiny_model("llama")
        self.encoder = wrap_tiny("llama", None).encoder
        self.edits: tuple[wise.Edit, ...] = ()
        self.told: list[list[int]] = []

    def with_context(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        return [[90, *prompt] for prompt in prompts]

    @contextmanager
    def reading(self, lengths: Sequence[int]) -> Iterator[None]:
        self.told.append(list(lengths))
        yield

    @contextmanager
    def disabled(self) -> Iterator[Any]:
        yield self.model

    def evaluating(self) -> AbstractContextManager[None]:
        return nullcontext()


def test_an_editor_of_whole_prompts_gives_them_and_is_told_where_they_end() -> None:
    editor = Reminded()
    prompter = Prompter(editor)
    prompts, limits = [[20, 21, 22], [40, 41, 42, 43]], [ANSWER_TOKENS, ANSWER_TOKENS]
    expected = {
        base: [alone(editor.model, [*([] if base else [90]), *prompt], ANSWER_TOKENS) for prompt in prompts]
        for base in (False, True)
    }
    assert expected[False] != expected[True], "the word before the prompt changes nothing: nothing was tested"
    for base in (False, True):
        assert prompter.answers(f"{base}", prompts, limits, base=base) == expected[base]
        rows = [PromptRow(prompt=prompt, fed=said) for prompt, said in zip(prompts, expected[base], strict=True)]
        assert prompter.best(f"{base}", rows, base=base) == expected[base]
    assert editor.told == [[4, 5]], "lengths of what is read, and of the edited model alone"
