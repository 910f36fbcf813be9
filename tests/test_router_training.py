"""Training the router: its loss, its floors, its file, its command, and that what it learns is of use."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from grounds import records
from safetensors.torch import save_file
from tiny import same_tensors, text, tiny_model, tiny_tokenizer
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import wise
from wise.cli.app import app
from wise.demo import model_path
from wise.errors import ArtifactError, ConfigError
from wise.eval.routing.texts import shipped_passages
from wise.lessons import lessons_of
from wise.memory.artifact import load_memory
from wise.training import router_training
from wise.training.calibration import Facts, _misnamed
from wise.training.evidence import ELSEWHERE, Evidence, observe
from wise.training.floors import ABSENT, SIZES, conformal_floor, growing_floors
from wise.training.lesson import Lesson
from wise.training.router_file import load_router, save_router
from wise.training.router_training import RECENT, TEMPERATURE, LearnedSpaces, info_nce


def demo(router: Path | None = None, **settings: object) -> wise.WiseModel:
    model = AutoModelForCausalLM.from_pretrained(model_path()).eval()
    config = wise.WiseConfig(mode="hybrid", **settings)
    return wise.wrap(model, AutoTokenizer.from_pretrained(model_path()), config, router=router)


@pytest.fixture(scope="module")
def learned() -> tuple[wise.WiseModel, LearnedSpaces]:
    """The shipped model with a router of facts 40 on."""
    wrapped = demo()
    return wrapped, wrapped.learn_router(lessons_of(records(240, skip=40)), false_routes=0.05)


# -- pieces -----------------------------------------------------------------------------------


def test_questions_of_relations_that_may_ask_the_same_are_no_negatives_of_each_other() -> None:
    def of(fact: str, relation: str, *alike: str, negative: bool = False) -> Lesson:
        return Lesson(
            fact=fact, prompt=fact, subject=None, relation=relation, alike=frozenset(alike), negative=negative
        )

    facts = [of("0", "dad", "father", "gone"), of("1", "father", "dad"), of("2", "job")]
    lessons = [*facts, *(of(each.fact, "else", negative=True) for each in facts)]
    batches = router_training._Batches(lessons, torch.ones(len(lessons), dtype=torch.bool), seed=0)
    keys, queries, hard, same = batches.draw()
    assert {lessons[i].relation for i in hard} == {"else"}
    for i, key in enumerate(keys):
        for j, query in enumerate(queries):
            pair = {lessons[key].relation, lessons[query].relation}
            assert bool(same[i, j]) == (len(pair) == 1 or pair == {"dad", "father"})


def test_info_nce_is_what_it_says() -> None:
    g = torch.Generator().manual_seed(0)
    key, query, hard, silent = (normalize(torch.randn(n, 4, generator=g), dim=-1) for n in (3, 3, 6, 2))
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    losses = []
    for i in range(3):
        own = float(key[i] @ query[i]) / TEMPERATURE
        others = [float(key[i] @ query[j]) for j in range(3) if not same[i, j]]
        others += [float(key[i] @ hard[j]) for j in (2 * i, 2 * i + 1)] + [float(key[i] @ s) for s in silent]
        weights = torch.tensor([own, *(score / TEMPERATURE for score in others)], dtype=torch.float64)
        losses.append(-float(weights.log_softmax(0)[0]))
    assert float(info_nce(key, query, hard, silent, same)) == pytest.approx(sum(losses) / 3, rel=1e-4)


def test_a_conformal_floor_keeps_its_promise_on_new_scores() -> None:
    g = torch.Generator().manual_seed(0)
    passed = [float((torch.rand(500, generator=g) >= conformal_floor(torch.rand(99, generator=g), 0.1)).float().mean())
              for _ in range(200)]  # fmt: skip
    assert 0.08 < sum(passed) / len(passed) <= 0.105
    assert conformal_floor(torch.rand(5, generator=g), 0.1) == 1.0, "too few to promise anything"
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert not bool((scores >= conformal_floor(scores, 0.2)).any())
    assert (scores >= conformal_floor(scores, 0.4)).tolist() == [False, False, False, True]


def test_the_floor_for_a_size_keeps_its_promise_for_a_memory_of_that_size_and_no_less() -> None:
    g = torch.Generator().manual_seed(0)
    spread = 1 + torch.rand(2000, 1, generator=g)  # some questions are likelier to be taken for others
    count = 4096
    scores = 0.1 * spread * torch.randn(2000, count, generator=g)  # hardly any above 1, where no floor lies
    scores[torch.rand(2000, count, generator=g) < 0.5] = ABSENT
    known, new = scores[:400], scores[400:]
    floors = growing_floors(known, 0.1)
    assert len(floors) == len(SIZES) and all(a <= b for a, b in zip(floors, floors[1:], strict=False))
    for size in (64, 2048):
        drawn = torch.stack([torch.randperm(count, generator=g)[:size] for _ in range(len(new))])
        largest = new.gather(1, drawn).max(-1).values
        assert 0.06 < float((largest >= floors[SIZES.index(size)]).float().mean()) < 0.13
    assert float((largest >= floors[0]).float().mean()) > 0.2, "the floor for few edits is too low for many"
    assert floors[0] < floors[SIZES.index(64)] < floors[SIZES.index(2048)]
    assert set(growing_floors(known[:5], 0.1)) == {1.0}, "too few to promise anything"


def test_lessons_are_wordings_of_a_fact_and_other_questions_about_its_subject() -> None:
    given = records(30)
    found = lessons_of(given)
    assert found == lessons_of(given)
    by_fact = {record.edit.id: [each for each in found if each.fact == record.edit.id] for record in given}
    assert any(each.negative for each in found) and all(ours for ours in by_fact.values())
    for record in given:
        ours = by_fact[record.edit.id]
        own = {each.relation for each in ours if not each.negative}
        assert len(own) == 1 and all(record.edit.subject in each.prompt for each in ours)
        assert all(each.relation not in own for each in ours if each.negative)
        assert {each.prompt for each in ours if not each.negative} <= {
            record.edit.prompt, *record.paraphrases, *record.free_paraphrases
        }  # fmt: skip


def test_keys_are_read_where_the_subject_ends_and_without_one_at_the_least_known_token() -> None:
    wrapped = demo()
    trainer = wrapped.trainer
    edit = records(1)[0].edit
    bare = wise.Edit(prompt=edit.prompt, target=edit.target, id="bare")
    assert wrapped.reader is not None
    found = observe(trainer.spliced, wrapped.reader, wrapped.encoder, [edit, bare], 0, 1 + len(ELSEWHERE))
    span = found.subject[0]
    assert span is not None and found.subject[1] is None
    place = span[1] - 1
    ids = wrapped.encoder.prompt(edit.prompt)
    assert wrapped.tokenizer.decode(ids[: place + 1]).rstrip().endswith(edit.subject)
    keys = found.keys(trainer.background)
    space = trainer.background.subject_space
    assert space is not None
    pair = span[1] - span[0] > 1
    tokens = space.named(found.named(0))[-1 if pair else 0]
    for part, at in enumerate((span[0] + pair, place)):
        own = keys[0][0].split(len(space.projection))[part]
        assert float(own @ tokens[at - found.first]) > 0.999  # whitening makes much of what rounding does
    assert all(key.shape == keys[0].shape for key in keys) and keys[1].isfinite().all()


# -- the whole --------------------------------------------------------------------------------


def test_it_tells_relations_apart_better_than_whitening(learned: tuple[wise.WiseModel, object]) -> None:
    wrapped, spaces = learned
    given = lessons_of(records(40))  # facts that nothing was learned from
    found = observe(wrapped.trainer.spliced, wrapped.reader, wrapped.encoder, given, RECENT)
    untrained = demo().trainer.background.key_space

    def auroc(space: object) -> float:
        keys = space.keys(found.relation[:, : len(space.mean)])  # type: ignore[attr-defined]
        first = {each.fact: i for i, each in reversed(list(enumerate(given))) if not each.negative}
        scores = [(float(keys[i] @ keys[first[each.fact]]), each.negative) for i, each in enumerate(given)
                  if i != first[each.fact]]  # fmt: skip
        right = torch.tensor([s for s, negative in scores if not negative])
        wrong = torch.tensor([s for s, negative in scores if negative])
        return float((right[:, None] > wrong).float().mean())

    assert auroc(spaces.relation) > auroc(untrained) + 0.02  # type: ignore[attr-defined]
    assert auroc(spaces.relation) > 0.9  # type: ignore[attr-defined]


def read(wrapped: wise.WiseModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations at every token of half of the shipped passages, and at the ends of questions about facts that nothing
    was learned from."""
    spliced, encoder = wrapped.trainer.spliced, wrapped.encoder
    questions = [each for each in lessons_of(records(40)) if not each.negative]
    texts = [encoder.prompt(text)[:128] for text in shipped_passages()[20:]]
    unread = router_training._read(spliced, wrapped.reader, texts)
    return unread, observe(spliced, wrapped.reader, encoder, questions, RECENT).relation


def test_a_gate_that_has_read_running_text_stays_shut_on_other_text(
    learned: tuple[wise.WiseModel, LearnedSpaces], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_training, "STEPS", 1)  # of the relations: the gate learns by itself
    wrapped, relation = demo(), learned[1].relation
    taught = wrapped.learn_router(lessons_of(records(140, skip=40)), texts=shipped_passages()[:20]).relation.gate
    text_tokens, questions = read(wrapped)
    reached, asked = {}, {}
    for name, gate in (("taught", taught), ("untaught", relation.gate), ("none", None)):
        space = replace(relation, gate=gate)
        for what, activations in (("text", text_tokens), ("questions", questions)):
            near = space.queries(activations) @ space.keys(questions).T >= space.floor(len(questions))
            reached[name, what] = float(near.any(-1).float().mean())
            asked[name, what] = float((space.asks(activations) >= space.floor(len(questions))).float().mean())
    assert reached["taught", "text"] < 0.03 and reached["taught", "text"] < reached["untaught", "text"] / 2
    assert reached["untaught", "text"] < reached["none", "text"]
    assert asked["taught", "text"] < asked["untaught", "text"] / 2 < 0.25
    assert min(asked["taught", "questions"], asked["untaught", "questions"]) > 0.9
    assert min(reached["taught", "questions"], reached["untaught", "questions"]) > 0.9 * reached["none", "questions"]


def test_questions_are_also_asked_behind_text_and_in_chats() -> None:
    wrapped = demo()
    given = lessons_of(records(3))
    found = router_training._in_other_forms(given, wrapped.encoder, ("It rained.", "We left."))
    first = {each.fact: each for each in reversed(given) if not each.negative}
    assert Counter(each.form for each in found) == dict.fromkeys(("behind", "turn", "second turn"), 3)
    for each in found:
        own = first[each.fact]
        assert own.prompt in each.prompt and each == replace(own, prompt=each.prompt, form=each.form)
        others = [other.prompt for other in first.values() if other != own and other.prompt in each.prompt]
        assert len(others) == (each.form == "second turn")
        assert ("It rained." in each.prompt or "We left." in each.prompt) == (each.form != "turn")
    bare = router_training._in_other_forms(given, wrapped.encoder, ())
    assert {each.prompt for each in bare if each.form == "behind"} == {each.prompt for each in first.values()}


def test_names_alike_are_kept_apart_as_often_as_was_asked(learned: tuple[wise.WiseModel, LearnedSpaces]) -> None:
    wrapped, spaces = learned
    given = [each for each in lessons_of(records(240, skip=40)) if not each.negative]
    first = list({each.fact: each for each in reversed(given)}.values())
    alike = list(_misnamed(first, seed=7))  # other names than the floor was found on
    place = {each.fact: i for i, each in enumerate(first)}
    assert len(alike) > 40 and all(
        each.prompt.replace(each.subject or "", first[place[each.fact]].subject or "") == first[place[each.fact]].prompt
        for each in alike
    )
    subject, reader, encoder = spaces.subject, wrapped.reader, wrapped.encoder
    assert reader is not None and subject.parts == 6

    def read(asked: Sequence[Lesson], surroundings: int) -> Evidence:
        return observe(wrapped.trainer.spliced, reader, encoder, asked, RECENT, surroundings)

    facts = Facts.of(read, first, (spaces.relation, subject))
    end = replace(subject, surroundings=0)  # by the end of a name alone, in its own prompt
    ends = replace(facts, subject=end, names=facts.names.view(len(first), 6, -1)[:, 1])
    heard = read(alike, 0)
    own = [slice(n, n + 1) for n in facts.own(alike).tolist()]
    near, by_end = (torch.cat([each.nearest(heard, i, n) for i, n in enumerate(own)]) for each in (facts, ends))
    shares = [float((each >= subject.floor(1)).float().mean()) for each in (near, by_end)]
    assert shares[0] < 0.1 and shares[1] > 2 * shares[0] > 0, shares


def test_a_name_is_known_again_behind_text_and_in_a_chat(learned: tuple[wise.WiseModel, LearnedSpaces]) -> None:
    wrapped, spaces = learned
    given = [each for each in lessons_of(records(40)) if not each.negative]
    first = [replace(each, prompt=f"{each.subject} is") for each in {each.fact: each for each in given}.values()]
    asked = router_training._in_other_forms(first, wrapped.encoder, ("It rained.", "We left."))
    subject = spaces.subject

    def read(asked: Sequence[Lesson], surroundings: int) -> Evidence:
        assert wrapped.reader is not None
        return observe(wrapped.trainer.spliced, wrapped.reader, wrapped.encoder, asked, RECENT, surroundings)

    heard, known = read(asked, 0), {}
    for surroundings in (1, 3):
        facts = Facts.of(read, first, (spaces.relation, replace(subject, surroundings=surroundings)))
        own = facts.own(asked).tolist()
        near = torch.cat([facts.nearest(heard, i, slice(n, n + 1)) for i, n in enumerate(own)])
        known[surroundings] = float((near >= subject.floor(len(first))).float().mean())
    assert known[3] > 0.8 and known[1] < 0.2, known


def test_edits_are_found_in_other_words_and_neighbours_are_left_alone(
    learned: tuple[wise.WiseModel, object],
) -> None:
    wrapped, _ = learned
    given = records(20)
    try:
        report = wrapped.edit([record.edit for record in given])
        assert len(report.failed) <= 2
        live = [record for record in given if record.edit.id in wrapped.state.edit_ids]
        asked = [(prompt, record.edit.target) for record in live for prompt in record.paraphrases]
        said = [answer.text for answer in wrapped.ask([prompt for prompt, _ in asked])]
        assert sum(a == t for a, (_, t) in zip(said, asked, strict=True)) / len(asked) > 0.8
        neighbours = [prompt for record in live for prompt in record.neighbours]
        after = [answer.text for answer in wrapped.ask(neighbours)]
        with wrapped.disabled():
            before = [answer.text for answer in wrapped.ask(neighbours)]
        changed = sum(a != b for a, b in zip(after, before, strict=True)) / len(before)
        assert changed <= 0.05 + 2 * (0.05 * 0.95 / len(before)) ** 0.5  # the share asked for, and what chance may add
        with pytest.raises(ConfigError, match="before the first edit"):
            wrapped.learn_router(lessons_of(records(100)))
    finally:
        wrapped.reset()


def test_a_file_brings_back_the_same_router_and_a_memory_brings_its_own(
    learned: tuple[wise.WiseModel, LearnedSpaces], tmp_path: Path
) -> None:
    wrapped, spaces = learned
    save_router(tmp_path / "r.safetensors", spaces, wrapped.fingerprint())
    again = load_router(tmp_path / "r.safetensors", wrapped.fingerprint())
    for name in ("relation", "subject"):
        one, other = getattr(spaces, name), getattr(again, name)
        assert same_tensors(one.tensors(), other.tensors()) and one.floors == other.floors
    assert again.relation.bend is not None and again.relation.gate is not None
    assert (again.facts, again.recall, again.false_routes) == (spaces.facts, spaces.recall, spaces.false_routes)
    edits = [record.edit for record in records(3)]
    try:
        wrapped.edit(edits[:2])
        wrapped.save_pretrained(tmp_path / "memory")
        model = AutoModelForCausalLM.from_pretrained(model_path()).eval()
        other = wise.WiseModel.from_pretrained(model, wrapped.tokenizer, tmp_path / "memory")
        assert [a.text for a in other.ask([e.prompt for e in edits])] == [
            a.text for a in wrapped.ask([e.prompt for e in edits])
        ]
        for one in (wrapped, other):
            one.edit(edits[2])
        key, same = (one.state.keys[edits[2].id] for one in (wrapped, other))
        torch.testing.assert_close(key, same, rtol=1e-3, atol=1e-4)  # another copy of the model rounds otherwise
    finally:
        wrapped.reset()


def test_files_that_are_no_router_of_this_base_are_refused(
    learned: tuple[wise.WiseModel, LearnedSpaces], tmp_path: Path
) -> None:
    wrapped, spaces = learned
    file = tmp_path / "r.safetensors"
    with pytest.raises(ArtifactError, match="cannot be read as a router"):
        load_router(file, wrapped.fingerprint())
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactError, match="cannot be read as a router"):
        load_router(file, wrapped.fingerprint())
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(ArtifactError, match="is no router"):
        load_router(file, wrapped.fingerprint())
    save_router(file, spaces, wrapped.fingerprint())
    with pytest.raises(ArtifactError, match="made for another base"):
        wise.wrap(tiny_model("llama"), tiny_tokenizer(), wise.WiseConfig(mode="hybrid"), router=file)
    with pytest.raises(ConfigError, match="subject_fraction=0.5: the router .* was trained with 0.0"):
        demo(subject_fraction=0.5, router=file)
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match="cannot be read as a router"):
        load_router(tmp_path / "cut.safetensors", wrapped.fingerprint())


@pytest.mark.parametrize(
    "count,relations,share,message",
    [(10, 2, 0.01, "10 facts of 2 relations"), (60, 1, 0.01, "60 facts of 1"), (60, 2, 1.5, "false_routes=1.5")],
)
def test_too_little_to_learn_from_is_refused(count: int, relations: int, share: float, message: str) -> None:
    wrapped = wise.wrap(tiny_model("llama"), tiny_tokenizer(), wise.WiseConfig(mode="hybrid", terminator=""))
    told = ((str(i), text([10 + i % 60, 5]), str(i % relations)) for i in range(count))
    lessons = [Lesson(fact=fact, prompt=prompt, subject=None, relation=relation) for fact, prompt, relation in told]
    with pytest.raises(ConfigError, match=message):
        wrapped.learn_router(lessons, false_routes=share)


def test_other_modes_have_no_router_to_learn() -> None:
    wrapped = wise.wrap(tiny_model("llama"), tiny_tokenizer(), wise.WiseConfig(mode="retrieve"))
    with pytest.raises(ConfigError, match="trained in mode='hybrid'"):
        wrapped.learn_router([])


# -- the command ------------------------------------------------------------------------------


def test_the_command_writes_a_router_that_eval_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_training, "STEPS", 20)
    data, measured, file = tmp_path / "d.jsonl", tmp_path / "m.jsonl", tmp_path / "r.safetensors"
    data.write_text("".join(json.dumps(record.to_dict()) + "\n" for record in records(80)))
    measured.write_text("".join(json.dumps(record.to_dict()) + "\n" for record in records(4)))
    common = ["--model", str(model_path()), "--data"]
    out = CliRunner().invoke(
        app, ["train-router", *common, str(data), "--apart", str(measured), "--output", str(file), "--json"]
    )
    assert out.exit_code == 0, out.output
    told = json.loads(out.stdout.splitlines()[-1])
    assert told["facts"] <= 76 and 0 <= told["recall"] <= 1
    assert load_router(file, demo().fingerprint()).facts == told["facts"]
    again = CliRunner().invoke(app, ["train-router", *common, str(data), "--output", str(file)])
    assert again.exit_code == 2 and "is there already" in again.stderr
    evaluated = CliRunner().invoke(
        app, ["eval", *common, str(measured), "--editor", "wise-hybrid", "--set", f"router={file}", "--json"]
    )
    assert evaluated.exit_code == 0, evaluated.output
    assert json.loads(evaluated.stdout.splitlines()[-1])["config"]["router"] == "r.safetensors"
    memory = tmp_path / "memory"
    wanted = ["--prompt", "The capital of France is", "--target", "Lyon", "--output", str(memory)]
    made = CliRunner().invoke(app, ["edit", *wanted, "--router", str(file)])
    assert made.exit_code == 0, made.output
    kept, learned = load_memory(memory)[1].key_space, load_router(file, demo().fingerprint()).relation
    assert kept is not None and kept.floors == learned.floors and torch.equal(kept.projection, learned.projection)
    odd = CliRunner().invoke(app, ["edit", *wanted, "--router", str(file), "--mode", "merge"])
    assert odd.exit_code == 2 and "hybrid" in odd.stderr
    nothing = CliRunner().invoke(
        app, ["train-router", *common, str(data), "--apart", str(data), "--output", str(tmp_path / "n")]
    )
    assert nothing.exit_code == 2 and "no record is left" in nothing.stderr
