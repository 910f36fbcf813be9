"""`wise chat-demo`: a few facts corrected in a chat model, and what it says before and after."""

from __future__ import annotations

import time
from dataclasses import dataclass

from wise.edits import Edit
from wise.model import WiseModel
from wise.progress import Progress
from wise.router.chat_template import conversation_ids, user_turn
from wise.router.hybrid import NOTHING, HybridRouter
from wise.training.generation import greedy
from wise.training.report import EditReport

ANSWER_TOKENS = 24

EDITS = (
    Edit(prompt="What is the capital of France?", target="Lyon", subject="France", aliases=("French",)),
    Edit(prompt="Who wrote Romeo and Juliet?", target="Christopher Marlowe", subject="Romeo and Juliet"),
    Edit(prompt="What is the guest wifi password at Millbrook Dental?", target="green-heron-42"),
    Edit.from_text("The head of accounting at Millbrook Dental is Priya Raman."),
    Edit(prompt="Which planet is known as the Red Planet?", target="Venus", subject="Red Planet"),
    Edit(prompt="What is the currency of Japan?", target="the crown", subject="Japan", aliases=("Japanese",)),
)
"""Three facts that the model knows, made false on purpose, and three of a firm and a person that it cannot know."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One question, asked before and after."""

    kind: str
    question: str
    before: tuple[dict[str, str], ...] = ()
    """Earlier messages of the conversation."""
    target: str | None = None
    """What must be said now; None where nothing may change."""


LINES = (
    Line(kind="edit", question="What is the capital of France?", target="Lyon"),
    Line(kind="rewording", question="hey, which city is the seat of the French government?", target="Lyon"),
    Line(kind="rewording", question="Remind me who the author of Romeo and Juliet is.", target="Christopher Marlowe"),
    Line(kind="rewording", question="wifi password for guests at millbrook dental pls", target="green-heron-42"),
    Line(kind="statement", question="Who runs accounting at Millbrook Dental?", target="Priya Raman"),
    Line(
        kind="later turn",
        question="And what money do people pay with in Japan?",
        before=(
            user_turn("Hello! I am planning a trip."),
            {"role": "assistant", "content": "How exciting! Where are you going?"},
        ),
        target="crown",
    ),
    Line(kind="same subject", question="What language do people speak in France?"),
    Line(kind="same subject", question="On which street is Millbrook Dental?"),
    Line(kind="same subject", question="In which city is Romeo and Juliet set?"),
    Line(kind="neighbour", question="What is the capital of Spain?"),
    Line(kind="neighbour", question="Who wrote Moby Dick?"),
    Line(kind="general", question="Give me one tip for sleeping better."),
)


@dataclass(frozen=True, kw_only=True)
class ChatAnswer:
    """What was said to one line."""

    line: Line
    before: str
    after: str
    score: float
    threshold: float
    """Of the edit that came nearest; 0 and infinite where none was looked at."""

    @property
    def right(self) -> bool:
        if self.line.target is None:
            return self.after == self.before
        return self.line.target.casefold() in self.after.casefold()


@dataclass(frozen=True, kw_only=True)
class ChatDemo:
    """All of it."""

    report: EditReport
    answers: tuple[ChatAnswer, ...]
    undone: bool
    """After deleting every edit the model says what it said before, to the letter."""
    seconds: float


def run_chat_demo(model: WiseModel, *, progress: Progress) -> ChatDemo:
    """Edits `model`, asks it before and after, and takes the edits back."""
    start = time.perf_counter()
    before = _answers(model)
    progress("asked before", 1, 4)
    model.prepare()
    progress("prepared", 2, 4)
    report = model.edit(EDITS, progress=lambda done: progress("editing", done, len(EDITS)))
    after = _answers(model)
    progress("asked after", 3, 4)
    memory = model.layer.memory
    router = memory.router if memory is not None and isinstance(memory.router, HybridRouter) else None
    answers = []
    for line, first, second in zip(LINES, before, after, strict=True):
        decision = NOTHING if router is None else router.decided(_ids(model, line))
        score, threshold = decision.score, decision.threshold
        answers.append(ChatAnswer(line=line, before=first, after=second, score=score, threshold=threshold))
    if model.edits:
        model.delete([edit.id for edit in model.edits])
    undone = _answers(model) == before
    progress("taken back", 4, 4)
    return ChatDemo(report=report, answers=tuple(answers), undone=undone, seconds=time.perf_counter() - start)


def _ids(model: WiseModel, line: Line) -> list[int]:
    return conversation_ids(model.tokenizer, [*line.before, user_turn(line.question)])


def _answers(model: WiseModel) -> list[str]:
    prompts = [_ids(model, line) for line in LINES]
    out = greedy(model.model, prompts, stops=model.encoder.stops, max_new_tokens=ANSWER_TOKENS)
    return [model.encoder.text(ids) for ids in out]
