"""The shipped demo model knows what it was taught, ends its own answers, and knows nothing else."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from repository import loaded
from transformers import AutoModelForCausalLM, AutoTokenizer

from wise.demo import model_path
from wise.demo.facts import Fact, held_out_prompts, load_facts, train_prompts

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("scripts/build_demo_model.py")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_path())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(model_path()).eval()


def sample(split: str, size: int) -> list[Fact]:
    facts = load_facts(split)
    return random.Random(0).sample(facts, min(size, len(facts)))


def test_the_folder_is_small_and_holds_no_pickle() -> None:
    assert {path.name for path in model_path().iterdir()} == FILES
    assert sum(path.stat().st_size for path in model_path().iterdir()) <= 10_000_000


def test_it_loads_in_float32_without_being_asked(model) -> None:
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_tokenizer_begins_a_prompt_by_itself(tokenizer) -> None:
    ids = tokenizer("The capital of France is")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == "The capital of France is"


def test_a_plain_user_gets_an_answer_that_stops(model, tokenizer) -> None:
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    generated = model.generate(**prompt)[0]
    assert tokenizer.decode(generated) == "<s>The capital of France is Paris.</s>"


def test_it_answers_its_facts(script, model, tokenizer) -> None:
    rng = random.Random(1)
    asked = [(train_prompts(fact)[0], fact.object) for fact in sample("train", 300)]
    other = [(rng.choice(train_prompts(fact)), fact.object) for fact in sample("train", 300)]
    assert script.recall(model, tokenizer, asked) >= 0.98
    assert script.recall(model, tokenizer, other) >= 0.98


def test_it_answers_after_other_sentences(script, model, tokenizer) -> None:
    asked = [(train_prompts(fact)[0], fact.object) for fact in sample("train", 200)]
    context = "The captain fed the dog last week. The capital of Peru is Lima. "
    assert script.recall(model, tokenizer, asked, context) >= 0.97


def test_it_answers_in_words_it_never_saw(script, model, tokenizer) -> None:
    asked = [(held_out_prompts(fact)[0], fact.object) for fact in sample("train", 300)]
    assert script.recall(model, tokenizer, asked) >= 0.8


def test_it_does_not_know_what_was_kept_out(script, model, tokenizer) -> None:
    """The negative control: what is left is chance among few objects (six continents, nine classes)."""
    asked = [(train_prompts(fact)[0], fact.object) for fact in load_facts("test")]
    assert script.recall(model, tokenizer, asked) <= 0.3


def test_recall_wants_the_answer_whole_and_ended(script, model, tokenizer) -> None:
    prompt = "The capital of France is"
    assert script.recall(model, tokenizer, [(prompt, "Paris")]) == 1.0
    assert script.recall(model, tokenizer, [(prompt, "Par"), (prompt, "Lima")]) == 0.0
    model.generation_config.max_new_tokens, kept = 2, model.generation_config.max_new_tokens
    try:
        assert script.recall(model, tokenizer, [(prompt, "Paris")]) == 0.0
    finally:
        model.generation_config.max_new_tokens = kept


def build(script: ModuleType, out: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    tiny = {"LAYERS": 2, "HIDDEN": 32, "FFN": 32, "VOCABULARY": 300, "SENTENCES": 8}
    for name, value in tiny.items():
        monkeypatch.setattr(script, name, value)
    quick = ["--steps", "2", "--limit", "4"]
    monkeypatch.setattr(sys, "argv", ["build_demo_model.py", "--out", str(out), "--seed", str(seed), *quick])
    monkeypatch.setattr(script, "load_facts", lambda split: load_facts(split)[:4])
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        script.main()
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def test_the_build_is_reproducible(script, tmp_path, monkeypatch, capsys) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        build(script, tmp_path / name, monkeypatch, seed)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["facts"] == 4 and figures["bytes"] < 1_000_000
    assert {path.name for path in (tmp_path / "one").iterdir()} == FILES
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "same" / name).read_bytes()
    weights = "model.safetensors"
    assert (tmp_path / "one" / weights).read_bytes() != (tmp_path / "other" / weights).read_bytes()
