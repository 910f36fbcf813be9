"""Asks an edited chat model: the edits, paraphrases, later turns, and questions whose answers must not change."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from wise.edits import Edit
from wise.lab.editors.in_context import InContext
from wise.lab.eval.candidates import find_editor
from wise.lab.eval.chat.facts import Fact
from wise.lab.eval.intervals import Interval, share_interval
from wise.lab.eval.prompting import EditedModel, Prompter, turn_text
from wise.lab.eval.routing.oracle import ForcedRouter, consulting, slots_of
from wise.lab.eval.run import EditStream
from wise.memory.side_memory import NO_SLOT
from wise.model import WiseModel
from wise.progress import Progress, silent
from wise.router.chat_template import user_turn
from wise.router.hybrid import HybridRouter
from wise.training.encoding import Encoder
from wise.training.generation import greedy
from wise.training.report import EditReport

ANSWER_TOKENS = 32
KNOWN_AT_ONCE = 64
BATCH = 16
CHAT_EDITORS = ("wise-hybrid", "icl")
"""Editors that are given a question and hold it in chats; others are given the templated question."""
EARLIER = ("Good morning! Can you help me with a few things?", "Of course, what would you like to know?")
SYSTEM = "You answer briefly."
PREFACE = "I have been thinking about this since breakfast, and my sister says I should just ask. "
SAME_SUBJECT = "same subject unchanged"
UNRELATED = "unrelated unchanged"
"""Of these, questions to which the base does not say what was edited, such as another wording of the edit's own."""
GENERAL = (
    "Write a haiku about rain.",
    "Give me three tips for sleeping better.",
    "What is 12 times 4?",
    "Explain what a noun is.",
    "Suggest a name for a cat.",
    "How do I boil an egg?",
    "Tell me a short story about a lighthouse.",
    "What should I pack for a weekend in the mountains?",
    "Translate 'good evening' into Spanish.",
    "List four colours.",
    "Why is exercise good for you?",
    "Write one sentence that thanks a colleague for her help.",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """One prompt, and what becomes of it counts as right."""

    measure: str
    fact: int
    """-1 for general requests."""
    text: str
    ids: tuple[int, ...]
    messages: tuple[Mapping[str, str], ...]
    """The conversation whose ids these are; none of a plain text."""
    asks_for_edit: bool
    """It asks for the edit: the answer must contain the target and not the old answer. Else it must not change."""


@dataclass(frozen=True, kw_only=True)
class Result:
    question: Question
    answer: str
    right: bool
    opened: bool | None
    """The edit's gate opened; where none may, any did. None where there is no router that could tell."""


@dataclass(frozen=True, kw_only=True)
class ChatFigures:
    measures: Mapping[str, tuple[int, int]]
    """Measure -> right, asked."""
    results: tuple[Result, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: share, count and 95 % interval of each measure, and what went wrong. The wordings of one fact stand
        and fall together, so the interval takes them together (`share_interval`)."""
        shares = {
            name: {"share": right / count, "asked": count, "interval": list(self._interval(name))}
            for name, (right, count) in self.measures.items()
        }
        wrong = [
            {"measure": r.question.measure, "prompt": r.question.text, "answer": r.answer, "opened": r.opened}
            for r in self.results
            if not r.right
        ]
        return {"measures": shares, "wrong": wrong}

    def _interval(self, measure: str) -> Interval:
        of_measure = [result for result in self.results if result.question.measure == measure]
        clusters = [r.question.fact if r.question.fact >= 0 else r.question.text for r in of_measure]
        return share_interval(torch.tensor([result.right for result in of_measure]), clusters)


def apply_edits(
    model: EditedModel, editor: str, edits: Sequence[Edit], *, chat: bool, progress: Progress
) -> EditReport:
    """Makes edits in calls as large as the editor's paper has them. chat: the templated question stands for the prompt
    where an editor knows no chats."""
    new_edits = [edit if not chat or editor in CHAT_EDITORS else _templated(model.encoder, edit) for edit in edits]
    stream = EditStream(model, new_edits, find_editor(editor).batch, progress)
    stream.advance(len(new_edits))
    reports = stream.reports
    return EditReport(
        outcomes=tuple(outcome for report in reports for outcome in report.outcomes),
        replaced=tuple(i for report in reports for i in report.replaced),
        dropped=tuple(i for report in reports for i in report.dropped),
        seconds=sum(report.seconds for report in reports),
        cpu_seconds=sum(report.cpu_seconds for report in reports),
        conflicts=tuple(conflict for report in reports for conflict in report.conflicts),
    )


def _templated(encoder: Encoder, edit: Edit) -> Edit:
    """The edit with the turn of a chat as its prompt, up to where the answer begins."""
    messages = [message._asdict() for message in edit.messages] or [user_turn(edit.prompt)]
    text = turn_text(encoder, messages)
    return Edit(prompt=text, target=edit.target, subject=edit.subject, id=edit.id)


def measure_chat(
    model: EditedModel, facts: Sequence[Fact], *, chat: bool = True, oracle: bool = True, progress: Progress = silent
) -> ChatFigures:
    """Asks an edited model, in the chat template or, with `chat` False, as plain texts to be completed.

    A question that must not change is left out where it asks what another fact or edit does: sets have such. Facts
    whose edit is not live count as wrong where they ask for it. The oracle's measure, of `hybrid` alone, is of
    rewordings with the right edit held open, whatever the router says: the ceiling of any router.
    """
    prompter = Prompter(model, progress)
    edited = {edit.prompt for edit in model.edits}
    edited |= {text for f in facts for text in (f.edit.prompt, *f.rewordings, *f.free_rewordings)}
    questions = [
        q for q in _questions(model.encoder, facts, chat) if q.asks_for_edit or q.text not in edited
    ]
    asking, unchanged = [q for q in questions if q.asks_for_edit], [q for q in questions if not q.asks_for_edit]
    answers = dict(zip(asking, _ask(prompter, "what was edited", asking), strict=True))
    # In the very batches in which the base is asked: in half precision a row depends on the shape of its batch.
    answers |= zip(unchanged, _ask(prompter, "what stays", unchanged), strict=True)
    before = dict(zip(unchanged, _ask(prompter, "what stays", unchanged, base=True), strict=True))
    results = []
    for question in questions:
        answer = answers[question]
        expected = says(facts[question.fact], answer) if question.asks_for_edit else answer == before[question]
        opened = _opens_right_gate(model, facts, question)
        results.append(Result(question=question, answer=answer, right=expected, opened=opened))
    results += [
        replace(result, question=replace(result.question, measure=UNRELATED))
        for result in results
        if result.question.measure == SAME_SUBJECT
        and not _contains(before[result.question], facts[result.question.fact].old)
    ]
    if oracle and isinstance(model, WiseModel):
        results += _oracle(model, facts, [q for q in questions if q.measure == "rewordings"], progress)
    counts: dict[str, tuple[int, int]] = {}
    for result in results:
        right, count = counts.get(result.question.measure, (0, 0))
        counts[result.question.measure] = right + result.right, count + 1
    return ChatFigures(measures=counts, results=tuple(results))


def says(fact: Fact, answer: str) -> bool:
    """The answer contains the target as whole words, and the old answer nowhere."""
    return _contains(answer, fact.edit.target) and not _contains(answer, fact.old)


def _question(
    encoder: Encoder,
    chat: bool,
    measure: str,
    fact: int,
    text: str,
    asks_for_edit: bool,
    *,
    before: Sequence[str] = (),
    system: str = "",
    preface: str = "",
) -> Question:
    """In the chat template or as plain text. before: an earlier turn and its answer. preface: text before the question.
    """
    messages: list[Mapping[str, str]] = []
    if chat:
        messages += [{"role": "system", "content": system}] if system else []
        messages += [{"role": r, "content": c} for r, c in zip(("user", "assistant"), before, strict=False)]
        messages.append({"role": "user", "content": preface + text})
    ids = tuple(encoder.turn(messages) if messages else encoder.prompt(preface + text))
    return Question(
        measure=measure, fact=fact, text=text, ids=ids, messages=tuple(messages), asks_for_edit=asks_for_edit
    )


def base_says(model: EditedModel, facts: Sequence[Fact], *, chat: bool, limit: int | None) -> list[Fact]:
    """The first `limit` facts to whose prompt the base says the right answer."""
    results: list[Fact] = []
    for start in range(0, len(facts), KNOWN_AT_ONCE):
        part = [fact for fact in facts[start : start + KNOWN_AT_ONCE] if fact.answer]
        questions = [_question(model.encoder, chat, "known", i, f.edit.prompt, True) for i, f in enumerate(part)]
        answers = _ask(Prompter(model), "known", questions, base=True, tokens=8)
        results += [f for f, a in zip(part, answers, strict=True) if _contains(a, f.answer)]
        if limit is not None and len(results) >= limit:
            break
    return results[:limit]


def _questions(encoder: Encoder, facts: Sequence[Fact], chat: bool) -> list[Question]:
    ask = partial(_question, encoder, chat)
    results = []
    for i, fact in enumerate(facts):
        forms: list[tuple[str, Sequence[str], dict[str, Any]]] = [
            ("edit", (fact.edit.prompt,), {}),
            ("rewordings", fact.rewordings, {}),
            ("free rewordings", fact.free_rewordings, {}),
            ("behind other text", fact.rewordings[:1], {"preface": PREFACE}),
        ]
        if chat:
            forms.append(("second turn", fact.rewordings[:1], {"before": EARLIER}))
            forms.append(("system message", fact.rewordings[1:2], {"system": SYSTEM}))
        results += [ask(measure, i, text, True, **how) for measure, texts, how in forms for text in texts]
        results += [ask(SAME_SUBJECT, i, text, False) for text in fact.same_subject]
        results += [ask("neighbours unchanged", i, text, False) for text in fact.neighbours]
    return results + [ask("general unchanged", -1, text, False) for text in (GENERAL if chat else ())]


def _ask(
    prompter: Prompter, name: str, questions: Sequence[Question], *, base: bool = False, tokens: int = ANSWER_TOKENS
) -> list[str]:
    """The texts of the answers, special tokens and all."""
    asked_model, encoder = prompter.model, prompter.encoder

    def compute(model: PreTrainedModel, part: Sequence[Question]) -> list[str]:
        if isinstance(asked_model, InContext) and all(q.messages for q in part):
            prompts = [encoder.turn(asked_model.conversation(q.messages)) for q in part]
        else:
            prompts = prompter.with_context([q.ids for q in part], base=base)
        out = greedy(model, prompts, stops=encoder.stops, max_new_tokens=tokens)
        return [str(encoder.tokenizer.decode(ids)) for ids in out]

    return prompter.mapped(name, questions, compute, lambda q: len(q.ids), base=base, batch=BATCH)


def _opens_right_gate(model: EditedModel, facts: Sequence[Fact], question: Question) -> bool | None:
    """The router opens the gate at the end of a prompt, that of the edit which is asked for."""
    memory = model.layer.memory if isinstance(model, WiseModel) else None
    if not isinstance(model, WiseModel) or memory is None or not isinstance(memory.router, HybridRouter):
        return None
    decision = memory.router.decided(question.ids)
    return decision.open and (
        not question.asks_for_edit or model.served.slots[decision.slot].edit_ids[0] == facts[question.fact].edit.id
    )


def _oracle(model: WiseModel, facts: Sequence[Fact], questions: Sequence[Question], progress: Progress) -> list[Result]:
    memory = model.layer.memory
    router = None if memory is None else memory.router
    slots, results = slots_of(model), []
    for i, fact in enumerate(facts):
        group = [q for q in questions if q.fact == i]
        slot = slots.get(fact.edit.id, NO_SLOT)
        forced = ForcedRouter(router, slot) if isinstance(router, HybridRouter) and slot != NO_SLOT else None
        with nullcontext() if forced is None else consulting(model, forced):
            answers = _ask(Prompter(model), "oracle", group)
        for question, answer in zip(group, answers, strict=True):
            as_oracle = replace(question, measure="oracle")
            right = slot != NO_SLOT and says(fact, answer)
            results.append(Result(question=as_oracle, answer=answer, right=right, opened=True))
        progress("asking with an oracle", i + 1, len(facts))
    return results


def _contains(text: str, words: str | None) -> bool:
    """`words` stand in a text as whole words; None stands in none."""
    if words is None:
        return False
    phrase = re.sub(r"^(?:the|a|an|to|in|on|at)\s+", "", words.casefold().strip())
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text.casefold()) is not None
