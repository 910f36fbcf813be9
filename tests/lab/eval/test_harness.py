"""lm-evaluation-harness on base and edited model: what an edit turns there, and what it leaves of the process."""

from __future__ import annotations

import json
import logging
import os
import random
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer
from tiny import WordReader, memory_by_hand, put, reading, text, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

import wise
from wise.cli.harness import harness
from wise.demo import model_path
from wise.demo.facts import Fact, counterfactual, load_facts, train_prompts
from wise.errors import ConfigError
from wise.lab.eval.harness import evaluate_harness, task_manager, tokenizer_of

needs_the_harness = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason='lm-eval is not installed: pip install "wise-runtime[harness]"'
)
FACTS = load_facts("train")[:300:30]
EDITED, KEPT = FACTS[:4], FACTS[4:]

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {file}
  cache_dir: {cache}
test_split: train
output_type: {kind}
doc_to_text: "{{{{prompt}}}}"
{more}
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
"""
CHOICE = 'doc_to_choice: "{{choices}}"\ndoc_to_target: "{{gold}}"'
ANSWER = """doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["."]
  max_gen_toks: 8
filter_list:
  - name: bare
    filter:
      - function: remove_whitespace
      - function: take_first"""


def task(folder: Path, name: str, documents: Sequence[dict[str, Any]], *, answered: bool = False) -> None:
    """A task with a file of its own."""
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))
    (folder / f"{name}.yaml").write_text(
        TASK.format(
            name=name,
            file=file,
            cache=folder / "cache",
            kind="generate_until" if answered else "multiple_choice",
            more=ANSWER if answered else CHOICE,
            metric="exact_match" if answered else "acc",
        )
    )


def document(fact: Fact) -> dict[str, Any]:
    """Chooses between what the model was taught and what it is edited to say."""
    choices = [counterfactual(fact, seed=0), fact.object]
    return {"prompt": train_prompts(fact)[0], "choices": choices, "gold": 1, "answer": fact.object}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("tasks")
    task(found, "edited_facts", [document(fact) for fact in EDITED])
    task(found, "other_facts", [document(fact) for fact in KEPT])
    task(found, "answers", [document(fact) for fact in FACTS], answered=True)
    return found


@pytest.fixture(scope="module", params=["retrieve", "hybrid"])
def model(request: pytest.FixtureRequest) -> wise.WiseModel:
    """The shipped model with four facts of ten edited."""
    base = AutoModelForCausalLM.from_pretrained(model_path())
    config = wise.WiseConfig(mode=request.param)
    wrapped = wise.wrap(base, AutoTokenizer.from_pretrained(model_path()), config, **reading(config.mode))
    edits = [
        wise.Edit(
            prompt=train_prompts(fact)[0],
            target=counterfactual(fact, seed=0),
            subject=fact.subject,
            locality=[train_prompts(kept)[0] for kept in KEPT if kept.subject == fact.subject],  # type: ignore[arg-type]
        )
        for fact in EDITED
    ]
    assert not wrapped.edit(edits).failed
    return wrapped


def by_task(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["task"]: row for row in found["results"]}


# -- what is measured -------------------------------------------------------------------------


@needs_the_harness
def test_an_edit_turns_its_own_choices_and_no_others(model: wise.WiseModel, folder: Path) -> None:
    found = evaluate_harness(model, ["edited_facts", "other_facts"], include_path=folder)
    edited, others = by_task(found)["edited_facts"], by_task(found)["other_facts"]
    assert (edited["base"], edited["edited"], edited["difference"]) == (1.0, 0.0, -1.0)
    assert (edited["documents"], edited["changed"], edited["p"]) == (4, 4, 2 * 0.5**4)
    assert (others["base"], others["edited"], others["difference"]) == (1.0, 1.0, 0.0)
    assert (others["documents"], others["changed"], others["p"]) == (6, 0, 1.0)
    assert edited["metric"] == "acc" and edited["higher_is_better"] is True
    assert edited["base_stderr"] == others["edited_stderr"] == 0.0
    assert found["edits"] == 4 and json.loads(json.dumps(found, allow_nan=False)) == found


@needs_the_harness
def test_generated_answers_are_those_of_the_edited_model(model: wise.WiseModel, folder: Path) -> None:
    [row] = evaluate_harness(model, ["answers"], include_path=folder, batch_size=3)["results"]
    assert (row["metric"], row["base"], row["edited"], row["changed"]) == ("exact_match, bare", 1.0, 0.6, 4)


@needs_the_harness
@pytest.mark.parametrize("own", [None, 1, 30])
def test_a_task_decides_how_much_is_generated_and_not_the_model(
    model: wise.WiseModel, folder: Path, own: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []
    generate = type(model.model).generate

    def watched(self: Any, *arguments: Any, **settings: Any) -> Any:
        found = generate(self, *arguments, **settings)
        lengths.append(found.shape[1] - settings["input_ids"].shape[1])
        return found

    monkeypatch.setattr(type(model.model), "generate", watched)
    monkeypatch.setattr(model.model.generation_config, "max_new_tokens", own)
    task(folder, "unended", [document(FACTS[0])], answered=True)
    endless = (
        (folder / "unended.yaml").read_text().replace('["."]', '["#"]').replace("max_gen_toks: 8", "max_gen_toks: 3")
    )
    (folder / "unended.yaml").write_text(endless)
    evaluate_harness(model, ["unended"], include_path=folder)
    assert lengths == [3, 3]
    assert model.model.generation_config.max_new_tokens == own


@needs_the_harness
def test_a_limit_takes_the_first_documents(model: wise.WiseModel, folder: Path) -> None:
    found = evaluate_harness(model, ["edited_facts"], include_path=folder, limit=1)
    [row] = found["results"]
    assert (found["limit"], row["documents"], row["changed"], row["base_stderr"]) == (1, 1, 1, None)


def hand_made(bos: bool) -> wise.WiseModel:
    """A tiny model with a memory, whose tokenizer puts no beginning-of-sequence."""
    config = wise.WiseConfig(mode="retrieve", bos=bos, terminator="", key_threshold=0.3)
    wrapped = wise.wrap(tiny_model("llama"), tiny_tokenizer(), config)
    put(wrapped, memory_by_hand(wrapped))
    return wrapped


def share_right(wrapped: wise.WiseModel, model: Any, documents: list[dict[str, Any]]) -> float:
    """The naive loop: the choice with the greatest log-likelihood, one at a time."""
    right = 0
    for found in documents:
        likelihoods = []
        for choice in found["choices"]:
            prompt = wrapped.encoder.prompt(found["prompt"])
            answer = wrapped.tokenizer(choice)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            likelihoods.append(sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(answer)))
        right += likelihoods.index(max(likelihoods)) == found["gold"]
    return right / len(documents)


@pytest.mark.slow
@needs_the_harness
def test_figures_are_those_of_a_naive_loop_behind_a_beginning_of_sequence(tmp_path: Path) -> None:
    draw = random.Random(5)
    documents = [
        {
            "prompt": text(draw.sample(range(4, 96), draw.randint(2, 6))),
            "choices": [text(draw.sample(range(4, 96), draw.randint(1, 3))) for _ in range(3)],
            "gold": draw.randrange(3),
        }
        for _ in range(60)
    ]
    task(tmp_path, "random_choices", documents)
    figures = {}
    for bos in (False, True):
        wrapped = hand_made(bos)
        [row] = evaluate_harness(wrapped, ["random_choices"], include_path=tmp_path)["results"]
        with wrapped.disabled() as base:
            before = share_right(wrapped, base, documents)
        figures[bos] = (before, share_right(wrapped, wrapped.model, documents))
        assert (row["base"], row["edited"]) == pytest.approx(figures[bos])
        assert row["changed"] > 0, "the memory changes nothing"
    assert figures[False] != figures[True], "the beginning-of-sequence changes nothing"


def test_the_harness_gets_the_ids_that_an_edit_is_fitted_on() -> None:
    for bos in (False, True):
        wrapped = hand_made(bos)
        tokenizer = tokenizer_of(wrapped)
        for prompt in ("w4 w5", "w9"):
            assert tokenizer(prompt)["input_ids"] == wrapped.encoder.prompt(prompt)
        assert tokenizer("w4", add_special_tokens=False)["input_ids"] == [4]
        assert wrapped.tokenizer("w4")["input_ids"] == [4], "the model's own tokenizer was changed"
    wrapped.tokenizer = SimpleNamespace(bos_token="<bos>", bos_token_id=1)
    with pytest.raises(ConfigError, match="slow tokenizer"):
        tokenizer_of(wrapped)


# -- what is left behind ----------------------------------------------------------------------


@needs_the_harness
def test_nothing_is_left_in_the_process_and_nothing_is_said(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lm_eval import evaluator

    monkeypatch.chdir(tmp_path)  # no git repository, which git would say
    wrapped = hand_made(bos=True)
    wrapped.model.train()
    wrapped.tokenizer.pad_token = None
    before = wrapped.layer.memory

    def state() -> list[Any]:
        memory = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
        levels = [logging.getLogger(name).level for name in ("lm_eval", "datasets")]
        return [memory, levels, dict(os.environ), evaluator.get_git_commit_hash, evaluator.add_env_info]

    torch.manual_seed(11), np.random.seed(11), random.seed(11)
    seen = state()
    first = evaluate_harness(wrapped, ["edited_facts"], include_path=folder)
    assert state() == seen
    assert wrapped.model.training and wrapped.layer.memory is before and wrapped.tokenizer.pad_token is None
    assert capfd.readouterr() == ("", "")
    torch.manual_seed(12), np.random.seed(12), random.seed(12)
    assert evaluate_harness(wrapped, ["edited_facts"], include_path=folder) == first
    evaluate_harness(wrapped, ["edited_facts"], include_path=folder, verbose=True)
    shown = capfd.readouterr()
    assert shown.out == "" and "loglikelihood" in shown.err


# -- what is refused --------------------------------------------------------------------------


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r'pip install "wise-runtime\[harness\]"'):
        evaluate_harness(hand_made(bos=False), ["x"])
    result = run("--memory", "nowhere", "--model", "./nowhere", "--tasks", "x")
    assert isinstance(result.exception, ConfigError) and "wise-runtime[harness]" in str(result.exception)


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    wrapped = hand_made(bos=False)
    with pytest.raises(ConfigError, match="names of tasks"):
        evaluate_harness(wrapped, ["hellaswag", ""])
    with pytest.raises(ConfigError, match="no such folder"):
        evaluate_harness(wrapped, ["x"], include_path=tmp_path / "gone")


@needs_the_harness
def test_data_that_cannot_be_loaded_is_named(folder: Path, tmp_path: Path) -> None:
    task(tmp_path, "gone", [])
    (tmp_path / "gone.jsonl").unlink()
    with pytest.raises(ConfigError, match="tasks gone: their data cannot be loaded"):
        evaluate_harness(hand_made(bos=False), ["gone"], include_path=tmp_path)


class Index:
    """Stands for the harness's own index of tasks, which takes long to read."""

    def __init__(self, include_path: str | None = None, include_defaults: bool = True) -> None:
        self.include_defaults = include_defaults
        self.all_tasks = ["mine", "group"] * (include_path is not None) + ["hellaswag"] * include_defaults

    def load(self, tasks: list[str]) -> None:
        if tasks == ["group"]:
            raise KeyError("hellaswag")


def test_the_long_index_is_read_only_where_it_is_needed(tmp_path: Path) -> None:
    managers: Any = SimpleNamespace(TaskManager=Index)
    assert not task_manager(managers, ["mine"], tmp_path).include_defaults
    assert task_manager(managers, ["mine", "hellaswag"], tmp_path).include_defaults
    assert task_manager(managers, ["group"], tmp_path).include_defaults
    assert task_manager(managers, ["hellaswag"], None).include_defaults
    with pytest.raises(ConfigError, match="did you mean 'hellaswag'"):
        task_manager(managers, ["helaswag"], tmp_path)
    with pytest.raises(ConfigError, match="lm-eval ls tasks"):
        task_manager(managers, ["qqq"], tmp_path)


# -- the command ------------------------------------------------------------------------------


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.command()(harness)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@needs_the_harness
def test_the_command_shows_both_and_ends_with_json(
    model: wise.WiseModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wise.model.load_encoder", lambda *_, **__: WordReader())
    model.save_pretrained(tmp_path / "memory")
    arguments = ("--memory", tmp_path / "memory", "--include-path", folder, "--tasks", "edited_facts, other_facts")
    result = run(*arguments, "--limit", "3", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    expected = evaluate_harness(model, ["edited_facts", "other_facts"], include_path=folder, limit=3)
    assert found == {"memory": str(tmp_path / "memory")} | expected
    assert "1.000 ± 0.000" in result.stdout and "-1.000" in result.stdout and "4 edits" in result.stdout
    assert result.stderr == "" and "{" not in run(*arguments).stdout
