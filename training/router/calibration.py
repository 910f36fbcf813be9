"""The thresholds of a relation reader, set on relations that it was not trained on; and the centre of each relation."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from wise.router.relations import nearest_relation
from wise.router.sentences import is_question
from wise.router.subjects import PLACEHOLDER
from wise.training.router.builtin_questions import SUBJECTS, QuestionSet, wordings
from wise.training.router.examples import put, relation_names, stated

FALSE_POSITIVE_RATE = 0.05
"""Share of other questions about a subject that the threshold lets pass."""
SENTENCE_RATE = 0.02
"""The same of unfinished sentences. Plain text asks at many places, and seldom for what was edited."""
NAMELESS_RATE = 0.02
"""Share of other questions that the threshold of an edit without a subject lets pass."""
UNNAMED_RATE = 0.0005
"""Share of questions about other subjects that the threshold without a name lets pass."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How well wordings of held-out relations are distinguished, and the thresholds found on them."""

    threshold: float
    sentence_threshold: float
    unnamed_threshold: float
    nameless_threshold: float
    recall: float
    """Share of rewordings that reach the threshold which `FALSE_POSITIVE_RATE` of the other questions reach."""
    sentence_recall: float
    """The same of unfinished sentences, with `SENTENCE_RATE`."""
    unnamed_recall: float
    """Share of rewordings that reach the threshold without a name."""


@torch.inference_mode()
def measure(
    network: Callable[[list[str]], Tensor], questions: QuestionSet, held_out: Mapping[str, list[str]], centres: Tensor
) -> Figures:
    """On relations that were never taught, each drawn four times.

    centres: `[n, r]` of the relations that an edit is compared with.
    """
    order = random.Random(7)
    reached = {True: list[float](), False: list[float]()}  # of questions, and of sentences
    others = {True: list[float](), False: list[float]()}
    whole, apart = list[float](), list[float]()
    for kind, relations in held_out.items():
        subjects = list(questions[SUBJECTS][kind])
        for relation in (each for each in relations for _ in range(4)):
            subject, elsewhere = order.sample(subjects, 2)
            about = questions[kind][relation]
            about_wordings = wordings(about)
            first, *more = order.sample(about_wordings, min(4, len(about_wordings)))
            unlike = [name for name in questions[kind] if name != relation]
            rival_names = order.sample(unlike, min(4, len(unlike)))
            rivals = [order.choice(wordings(questions[kind][name])) for name in rival_names]
            asked = put(PLACEHOLDER, first)
            keys = network([asked, *(stated(asked, answer) for answer in about.get("answers", ())[:1])])
            keys = torch.cat([keys, centres[nearest_relation(keys, centres)][None]])
            for asking, scores in ((more, reached), (rivals, others)):
                similarities = (network([put(PLACEHOLDER, text) for text in asking]) @ keys.T).amax(-1).tolist()
                for text, score in zip(asking, similarities, strict=True):
                    scores[is_question(text)].append(score)
            texts = [put(subject, wording) for wording in (first, *more, *rivals)]
            vectors = network([*texts, *(put(elsewhere, wording) for wording in (first, *more))])
            alike = (vectors[1:] @ vectors[0]).tolist()
            whole, apart = whole + alike[: len(more)], apart + alike[len(more) :]
    threshold = _reached_by(others[True] or others[False], FALSE_POSITIVE_RATE)
    sentence_threshold = _reached_by(others[False] or others[True], SENTENCE_RATE)
    unnamed_threshold = _reached_by(apart, UNNAMED_RATE)
    return Figures(
        threshold=threshold,
        sentence_threshold=sentence_threshold,
        unnamed_threshold=unnamed_threshold,
        nameless_threshold=_reached_by(apart, NAMELESS_RATE),
        recall=_share(reached[True] or reached[False], threshold),
        sentence_recall=_share(reached[False] or reached[True], sentence_threshold),
        unnamed_recall=_share(whole, unnamed_threshold),
    )


def _reached_by(scores: Sequence[float], share: float) -> float:
    """The score that such a share of them reaches."""
    return float(torch.quantile(torch.tensor(scores), 1 - share))


def _share(scores: Sequence[float], threshold: float) -> float:
    return float((torch.tensor(scores) >= threshold).float().mean())


@torch.inference_mode()
def relation_centres(network: Callable[[list[str]], Tensor], questions: QuestionSet) -> Tensor:
    """The mean vector of each relation's wordings, `[relations, r]` unit, in the order of `examples.relation_names`."""
    centres = []
    for kind, relation in relation_names(questions):
        texts = wordings(questions[kind][relation])
        few = random.Random(f"{kind} {relation}").sample(texts, min(8, len(texts)))
        centres.append(network([put(PLACEHOLDER, wording) for wording in few]).mean(0))
    return normalize(torch.stack(centres), dim=-1)


def relation_kinds(questions: QuestionSet) -> Tensor:
    """`[relations]` int16, the number of each relation's kind of subject, in the order of `examples.relation_names`."""
    kinds = list(questions[SUBJECTS])
    return torch.tensor([kinds.index(kind) for kind, _ in relation_names(questions)], dtype=torch.int16)
