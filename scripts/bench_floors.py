"""The curve of the hybrid router: what lower floors win in wordings, and what they cost in false routes.

    python scripts/bench_floors.py --model MODEL --data known.jsonl --router router.safetensors --skip 520 --edits 100 \
        --text wikisplit.jsonl.xz

Edits once, and then asks everything again at every pair of floors, of relations and of subjects, that is asked for; the
first line has the router's own. An edit whose own floor of relations lies higher keeps it. Same-subject questions are
of other relations among the records. A table goes to stdout as Markdown. One process, one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import wise
from wise.eval.routing.texts import read_texts
from wise.lessons import lessons_of
from wise.memory.slot import EditSlot
from wise.memory.state import MemoryState
from wise.reading import read_rows

HEAD = ("floors: relation, subject", "reliability", "generalization", "free wordings", "of them known to the base")
HEAD += ("neighbours unmoved", "same subject unmoved", "text tokens routed / M")
AT_ONCE = 64
ROUNDING = 1e-6
TEXT_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class Question:
    prompt: str
    wanted: str
    """What is right: the target, or what the base says."""
    known: bool = False
    """The base itself answers it with the old object."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    edits: Sequence[Question]
    paraphrases: Sequence[Question]
    free: Sequence[Question]
    neighbours: Sequence[Question]
    same_subject: Sequence[Question]


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    records = wise.read_records(options.data)[options.skip :][: options.edits]
    base, tokenizer = AutoModelForCausalLM.from_pretrained(options.model), AutoTokenizer.from_pretrained(options.model)
    model = wise.wrap(base.eval(), tokenizer, wise.WiseConfig(mode="hybrid"), router=options.router)
    questions = collected(model, records)
    report = model.edit([record.edit for record in records])
    rows = [model.encoder.prompt(text)[:TEXT_TOKENS] for text in read_texts(options.text)[: options.texts]]
    print(f"{len(records)} edits, {len(report.failed)} failed; {sum(map(len, rows))} tokens of running text\n")
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    own = floors_of(model.state)
    pairs = [own, *((r, s) for s in options.subject or own[1:] for r in options.relation or own[:1] if (r, s) != own)]
    for pair in pairs:
        with model.serving(at(model.state, *pair)):
            print(f"| {' | '.join(line(model, pair, questions, rows))} |", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="records")
    parser.add_argument("--router", required=True, help="file that `wise train-router` wrote")
    parser.add_argument("--skip", type=int, default=0, help="records at the head of the file that are left alone")
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--relation", type=float, nargs="+", help="floors of relations (the router's)")
    parser.add_argument("--subject", type=float, nargs="+", help="floors of subjects (the router's)")
    parser.add_argument("--text", required=True, help="running text")
    parser.add_argument("--texts", type=int, default=500, help="texts of it")
    return parser.parse_args()


def collected(model: wise.WiseModel, records: Sequence[wise.Record]) -> Questions:
    """Before anything is edited."""
    by_fact = {record.edit.id: record for record in records}
    others = [lesson.prompt for lesson in lessons_of(records) if lesson.negative and lesson.fact in by_fact]
    neighbours = [prompt for record in records for prompt in record.neighbours]
    free = [(prompt, record) for record in records for prompt in record.free_paraphrases]
    said = answers(model, [prompt for prompt, _ in free])
    return Questions(
        edits=[Question(prompt=record.edit.prompt, wanted=record.edit.target) for record in records],
        paraphrases=[
            Question(prompt=prompt, wanted=record.edit.target) for record in records for prompt in record.paraphrases
        ],
        free=[
            Question(prompt=prompt, wanted=record.edit.target, known=answer == record.answer)
            for (prompt, record), answer in zip(free, said, strict=True)
        ],
        neighbours=unmoved(neighbours, answers(model, neighbours)),
        same_subject=unmoved(others, answers(model, others)),
    )


def unmoved(prompts: Sequence[str], said: Sequence[str]) -> list[Question]:
    return [Question(prompt=prompt, wanted=answer) for prompt, answer in zip(prompts, said, strict=True)]


def answers(model: wise.WiseModel, prompts: Sequence[str]) -> list[str]:
    parts = [prompts[start : start + AT_ONCE] for start in range(0, len(prompts), AT_ONCE)]
    return [answer.text for part in parts for answer in model.ask(part)]


def floors_of(state: MemoryState) -> tuple[float, float]:
    assert state.key_space is not None and state.subject_space is not None
    return state.key_space.floor(len(state.edits)), state.subject_space.floor(len(state.edits))


def at(state: MemoryState, relation: float, subject: float) -> MemoryState:
    """The same with other floors, but for keys whose own lies above the router's."""
    assert state.key_space is not None and state.subject_space is not None
    usual = state.key_space.floor(1) + ROUNDING
    slots = tuple(
        replace(slot, floors=torch.where(slot.key_floors > usual, slot.key_floors, relation))
        for slot in state.slots
        if isinstance(slot, EditSlot)
    )
    spaces = replace(state.key_space, floors=(relation,)), replace(state.subject_space, floors=(subject,))
    return replace(state, slots=slots, key_space=spaces[0], subject_space=spaces[1])


def line(
    model: wise.WiseModel, floors: tuple[float, float], questions: Questions, rows: Sequence[Sequence[int]]
) -> list[str]:
    found = [f"{floors[0]:.2f}, {floors[1]:.2f}"]
    for asked in (questions.edits, questions.paraphrases, questions.free):
        found.append(right(model, asked))
    found.append(right(model, [question for question in questions.free if question.known]))
    found += [right(model, questions.neighbours), right(model, questions.same_subject)]
    return [*found, f"{routed(model, rows):.0f}"]


def right(model: wise.WiseModel, asked: Sequence[Question]) -> str:
    said = answers(model, [question.prompt for question in asked])
    hits = sum(answer == question.wanted for answer, question in zip(said, asked, strict=True))
    return f"{hits / len(asked):.3f}" if asked else "-"


def routed(model: wise.WiseModel, rows: Sequence[Sequence[int]]) -> float:
    """Of a million tokens of text."""
    opened = 0
    for row in rows:
        activation = read_rows(model.model, model.layer, [row])
        opened += int(model.layer.memory.route(activation).open.sum())
    return 1e6 * opened / sum(map(len, rows))


if __name__ == "__main__":
    main()
