"""What the hybrid router goes by, read off the base for prompts: what is asked at their end, and of whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from wise.errors import ConfigError
from wise.memory.context import ContextReader, joined
from wise.memory.key_space import ENDS, KeySpace
from wise.training.encoding import Encoder
from wise.training.splice import SplicedModel
from wise.training.subjects import subject_spans

BATCH = 64
ELSEWHERE = ("", "This much is known. ")
"""Texts behind which a subject is read by itself, beside where its prompt names it: nothing, and a sentence."""


class Asked(Protocol):
    """A question: an edit, or what a router learns from."""

    @property
    def prompt(self) -> str: ...

    @property
    def subject(self) -> str | None:
        """As it stands in the prompt."""
        ...


class Spaces(Protocol):
    @property
    def key_space(self) -> KeySpace: ...

    @property
    def subject_space(self) -> KeySpace | None: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Of `n` questions, float32."""

    relation: Tensor
    """`[n, f]` activation at the edited layer, at the prompt's last token, and what was read beside it."""
    before: Tensor
    """`[n, f]` the same at the token before it, where the question is not yet asked; of one token alone, at that."""
    context: tuple[Tensor, ...]
    """Of each `[tokens, v]`: the base's value vectors."""
    subject: tuple[tuple[int, int] | None, ...]
    """The subject of each, from its first token to behind its last; None where it names none."""
    first: int
    """Before that there is only the beginning of sequence."""
    elsewhere: tuple[Evidence, ...] = ()
    """The same of the subjects by themselves, in other surroundings."""

    def keys(self, spaces: Spaces) -> list[Tensor]:
        """Of each its subject key and relation key side by side, `[1, parts s + r]`."""
        space = spaces.subject_space
        if space is None:
            raise RuntimeError("the background was measured for another mode: it has no subject space")
        relation = spaces.key_space.keys(self.relation)
        return [torch.cat([self.subject_key(i, space), relation[i : i + 1]], dim=-1) for i in range(len(relation))]

    def subject_key(self, question: int, space: KeySpace) -> Tensor:
        """`[1, parts s]`, see `of_whom`.

        Raises RuntimeError where the subject was not read in all the surroundings of the space.
        """
        if not space.surroundings:
            return self._ends(question, space)[1:]
        read = (self, *self.elsewhere)
        if len(read) != space.surroundings:
            raise RuntimeError(f"subjects were read in {len(read)} surroundings, {space.surroundings} are asked for")
        return torch.cat([each._ends(question, space) for each in read]).view(1, -1)

    def _ends(self, question: int, space: KeySpace) -> Tensor:
        """The beginning and the end of the subject `[2, s]`: two tokens, or one alone where it has no more.

        Where no subject is named, the token that the subject space knows least stands for it: the longest vector.
        """
        values, span = self.named(question), self.subject[question]
        if span is None:
            lengths = linear(joined(values, space.recent), space.projection, space.shift).norm(dim=-1)
            return space.named(values)[-1][lengths.argmax()].expand(ENDS, -1)
        start, end = (place - self.first for place in span)
        pair = end - start > 1
        return space.named(values)[-1 if pair else 0][[start + pair, end - 1]]

    def named(self, question: int) -> Tensor:
        """The value vectors of a question from `first` on: `[tokens, v]`, on the CPU."""
        return self.context[question][self.first :].cpu()


def observe(
    spliced: SplicedModel,
    reader: ContextReader,
    encoder: Encoder,
    asked: Sequence[Asked],
    recent: int,
    surroundings: int = 0,
) -> Evidence:
    """Runs the base over the prompts, and over their subjects elsewhere.

    recent: of the space of relations that it is for; surroundings: of that of subjects; see `KeySpace`.

    Raises ConfigError for more surroundings than there are.
    """
    if surroundings > 1 + len(ELSEWHERE):
        raise ConfigError(f"{surroundings} surroundings of subjects: this release has {1 + len(ELSEWHERE)}; train anew")
    texts = ELSEWHERE[: max(0, surroundings - 1)]
    elsewhere = ([_Alone.of(each, text, encoder) for each in asked] for text in texts)
    found = _observe(spliced, reader, encoder, asked, recent)
    return replace(found, elsewhere=tuple(_observe(spliced, reader, encoder, alone, 0) for alone in elsewhere))


@dataclass(frozen=True, kw_only=True)
class _Alone:
    prompt: str
    subject: str | None

    @classmethod
    def of(cls, asked: Asked, text: str, encoder: Encoder) -> _Alone:
        """The subject behind a text; the question as it is where it names none, or they do not fit."""
        prompt = asked.prompt if asked.subject is None else f"{text}{asked.subject}"
        fits = len(encoder.prompt(prompt)) <= encoder.context
        return cls(prompt=prompt if fits else asked.prompt, subject=asked.subject)


def _observe(
    spliced: SplicedModel, reader: ContextReader, encoder: Encoder, asked: Sequence[Asked], recent: int
) -> Evidence:
    relation: list[Tensor] = []
    before: list[Tensor] = []
    context: list[Tensor] = []
    places: list[tuple[int, int] | None] = []
    first = len(encoder.bos)
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        rows = [encoder.prompt(each.prompt) for each in part]
        activations, _, _ = spliced.observe(rows)
        vectors = heard(reader, activations, recent)
        relation.append(_kept(vectors[:, -1]))
        second = torch.tensor([-2 if len(row) > 1 else -1 for row in rows], device=vectors.device)
        before.append(_kept(vectors[torch.arange(len(rows), device=second.device), second]))
        values = reader.values
        if values is None:
            raise RuntimeError("attention was not run: is it part of the model's forward?")
        context += [_kept(values[i, values.shape[1] - len(row) :]) for i, row in enumerate(rows)]
        for each in part:
            spans = subject_spans(encoder, each.prompt, each.subject) if each.subject else []
            places.append(spans[-1] if spans else None)
    return Evidence(
        relation=torch.cat(relation),
        before=torch.cat(before),
        context=tuple(context),
        subject=tuple(places),
        first=first,
    )


def heard(reader: ContextReader, activations: Tensor, recent: int) -> Tensor:
    """`[rows, tokens, f]` of the last forward -> `[rows, tokens, f + recent v]`, all that questions are compared by."""
    flat = activations.flatten(0, 1)
    vectors = reader.beside(flat, torch.arange(len(flat), device=flat.device), recent)
    return vectors.view(*activations.shape[:2], -1)


def _kept(vectors: Tensor) -> Tensor:
    """In float32, and by itself: a view would keep the whole batch in memory."""
    return vectors.to(torch.float32, copy=True)
